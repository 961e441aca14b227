"""The table of an evaluation's scores."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from model.sentences import counted
from trainer.forecast.scores import MODEL, Evaluation

SCORES = {
    "mse": "MSE",
    "mae": "MAE",
    "smape": "sMAPE",
    "mase": "MASE",
    "crps": "CRPS",
    "sql": "SQL",
    "wql": "WQL",
    "msis": "MSIS",
}
"""Scores, and what they are called."""

PRINTED = ("mse", "mae", "smape", "mase")
"""Scores in the table, beside WQL; evaluation.json and the report have all."""


def print_table(evaluation: Evaluation) -> None:
    """Print the scores of each forecaster."""
    table = Table()
    keys = [*PRINTED, *(["wql"] if evaluation.levels else [])]
    columns = ["forecast", *(SCORES[key] for key in keys)]
    several = len(evaluation.items) > 1
    if several:
        columns += ["MASE of the series: quartiles"]
    for column in columns:
        table.add_column(column, justify="left" if column == "forecast" else "right")
    over_items = evaluation.over_items()
    for name, scores in evaluation.scores().items():
        numbers = [f"{scores[key]:.4f}" for key in keys]
        if several:
            numbers.append("  ".join(f"{q:.4f}" for q in over_items[name]["mase"].values()))
        table.add_row(name, *numbers, style="bold" if name == MODEL else None)
    windows = counted(evaluation.windows, f"{evaluation.split} window")
    if evaluation.windows < evaluation.all_windows:
        of = f"{evaluation.windows:,} of {evaluation.all_windows:,} {evaluation.split} windows"
        windows = f"{of}, one in {evaluation.score_every} (data.score_every)"
    console = Console(width=100)
    of_items = f" of {len(evaluation.items):,} series" if several else ""
    console.print(f"\n{windows}{of_items}, errors in {evaluation.units}")
    console.print(table)
    coverage = evaluation.coverage()
    if coverage is not None:
        console.print(
            f"The interval that should hold {coverage[0]:.0%} of the points holds {coverage[1]:.1%}"
        )
    if evaluation.undefined:
        console.print(
            f"MASE leaves out {evaluation.undefined:,} series or channels whose season repeats "
            "exactly, or that have none in training"
        )
