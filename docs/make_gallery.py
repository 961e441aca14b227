"""Draws the pictures of docs/gallery.md from the tutorial's run: a few seconds for each.

    python docs/make_gallery.py [FOLDER]      # beside runs/shops, shops.csv and future.csv

It writes a PNG file for each feature to FOLDER, by default gallery.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter, DateConverter
from matplotlib.figure import Figure

from forescale import Forecaster

LEVELS = [round(0.1 * n, 1) for n in range(1, 10)]
SHOP, WEEK = "shop-03", 7
BLUE, GREY, RED = "#1f77b4", "#8a8a8a", "#d62728"

Tables = tuple[pd.DataFrame, pd.DataFrame]
"""The shops' past, and what is known of the days to come."""


def one_shop(tables: Tables) -> Tables:
    """Return one shop's rows, their days as dates."""
    past, future = (table[table["shop"] == SHOP].copy() for table in tables)
    for table in (past, future):
        table["day"] = pd.to_datetime(table["day"])
    return past, future


def band(axes: Axes, made: pd.DataFrame, colour: str = BLUE, label: str = "forecast") -> None:
    """Draw a forecast's mean and the interval that should hold 80 % of the points."""
    axes.fill_between(made["day"], made["0.1"], made["0.9"], color=colour, alpha=0.2, lw=0)
    axes.plot(made["day"], made["mean"], color=colour, lw=1.3, label=label)


def known(axes: Axes, past: pd.DataFrame, days: int, label: str = "sales") -> None:
    """Draw the last days of a shop's sales."""
    shown = past.tail(days)
    axes.plot(shown["day"], shown["sales"], color=GREY, lw=1, label=label)


def end(forecaster: Forecaster, tables: Tables, axes: Axes) -> None:
    past, future = one_shop(tables)
    known(axes, past, 84)
    band(axes, forecaster.predict(past, future=future))
    axes.set_title("What comes after the end of a file, with intervals")


def backtest(forecaster: Forecaster, tables: Tables, axes: Axes) -> None:
    past, _ = one_shop(tables)
    known(axes, past, 140)
    tested = forecaster.backtest(past, windows=4, step=4 * WEEK)
    for number, (_, made) in enumerate(tested.groupby("cutoff")):
        band(axes, made, label="forecast from four origins" if number == 0 else "")
    axes.set_title("A backtest: what it would have said, again and again")


def what_if(forecaster: Forecaster, tables: Tables, axes: Axes) -> None:
    past, future = one_shop(tables)
    known(axes, past, 42)
    for factor, colour in ((1.0, BLUE), (0.8, RED)):
        changed = future.assign(price=future["price"] * factor)
        label = "prices as planned" if factor == 1 else "a fifth cheaper"
        band(axes, forecaster.predict(past, future=changed), colour, label)
    axes.set_title("What if: columns that are known in advance")


def long(forecaster: Forecaster, tables: Tables, axes: Axes) -> None:
    past, future = one_shop(tables)
    known(axes, past, 84)
    later = [future.assign(day=future["day"] + pd.Timedelta(days=28 * n)) for n in range(4)]
    band(axes, forecaster.predict(past, future=pd.concat(later), horizon=112))
    axes.axvline(future["day"].iloc[-1], color=GREY, ls=":", lw=1)
    axes.set_title("Four times the horizon that was trained (dotted): quantile paths are fed back")


def gaps(forecaster: Forecaster, tables: Tables, axes: Axes) -> None:
    past, future = one_shop(tables)
    days = past["day"].max() - past["day"]
    is_lost = (days > pd.Timedelta(days=9)) & (days < pd.Timedelta(days=36))
    holed = past.assign(sales=past["sales"].where(~is_lost))
    known(axes, holed, 84, "sales, four weeks of them missing")
    band(axes, forecaster.predict(holed, future=future))
    axes.set_title("Missing points are masked, not made up")


def calibration(forecaster: Forecaster, tables: Tables, axes: Axes) -> None:
    tested = forecaster.backtest(tables[0], windows=4)
    held = [(tested["sales"] <= tested[f"{level:g}"]).mean() for level in LEVELS]
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="perfect")
    axes.plot(LEVELS, held, color=BLUE, marker="o", ms=4, label="40 shops, four months")
    axes.set(xlabel="quantile", ylabel="share of days below it")
    axes.set_title("Calibration: do quantiles hold what they say?")


def errors(forecaster: Forecaster, tables: Tables, axes: Axes) -> None:
    tested = forecaster.backtest(tables[0], windows=4)
    tested["ahead"] = tested.groupby(["shop", "cutoff"]).cumcount() + 1
    miss = (tested["mean"] - tested["sales"]).abs()
    scale = tested.groupby("shop")["sales"].transform("mean")
    axes.plot((miss / scale).groupby(tested["ahead"]).mean(), color=BLUE, marker="o", ms=3)
    axes.set(xlabel="days ahead", ylabel="mean error, share of a shop's mean", ylim=(0, None))
    axes.set_title("Errors over the horizon")


PICTURES: dict[str, Callable[[Forecaster, Tables, Axes], None]] = {
    "end": end,
    "backtest": backtest,
    "what_if": what_if,
    "long": long,
    "gaps": gaps,
    "calibration": calibration,
    "errors": errors,
}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "gallery")
    folder.mkdir(exist_ok=True)
    warnings.simplefilter("ignore")  # a single shop is a table of one series
    forecaster = Forecaster.load("runs/shops")
    tables = pd.read_csv("shops.csv"), pd.read_csv("future.csv")
    for name, draw in PICTURES.items():
        figure = Figure(figsize=(8, 2.9), layout="constrained")
        axes = figure.subplots()
        draw(forecaster, tables, axes)
        axes.spines[["top", "right"]].set_visible(False)
        if isinstance(axes.xaxis.get_converter(), DateConverter):
            axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, loc="upper left", ncols=3, fontsize=8)
        figure.savefig(folder / f"{name}.png", dpi=80)
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
