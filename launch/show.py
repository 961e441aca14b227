"""`forescale show PATH`: what a run folder, a checkpoint or an export holds."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from model.errors import UserError
from parallel.layout import describe
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.store import Checkpoint
from trainer.logs.metrics import read_metrics
from trainer.run.folder import RunFolder
from trainer.weights.source import WeightsSource, find


def tell(path: Path, *, verify: bool) -> None:
    if (path / "checkpoint.json").is_file():
        _checkpoint(Checkpoint(path), verify=verify)
    elif RunFolder(path).exists():
        _run(RunFolder(path), verify=verify)
    else:
        _weights(find(path))


def _print(rows: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    Console(width=100).print(table)


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def _run(run: RunFolder, *, verify: bool) -> None:
    settings = run.configuration().settings
    file = run.path / "environment.json"
    environment = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    rows = read_metrics(run.path / "metrics.jsonl")
    state = next(
        (m for m in ("done", "saved") if (run.path / m).exists()), "running or interrupted"
    )
    shown = {
        "run": str(run.path),
        "state": f"{state}, step {rows[-1]['step'] if rows else 0} of {settings.train.steps}",
        "data": settings.data.source,
    }
    if environment:
        shown["layout"] = describe(environment["layout"])
        shown["versions"] = ", ".join(f"{k} {v}" for k, v in environment["versions"].items() if v)
    if rows:
        last = rows[-1]
        shown["last step"] = (
            f"loss {_number(last['loss'], '.4f')}, grad norm {_number(last['grad_norm'], '.3f')}, "
            f"{last['tokens_per_second']:,.0f} tokens/s, {last['skipped_steps']} steps skipped"
        )
    steps = [str(checkpoint.step) for checkpoint in run.store.committed()]
    shown["checkpoints"] = f"steps {', '.join(steps)}" if steps else "none"
    wrong = {c.path.name: c.verify(contents=verify) for c in run.store.committed()}
    damaged = {name: why for name, why in wrong.items() if why is not None}
    shown |= {name: f"damaged: {why}" for name, why in damaged.items()}
    aside = sorted(folder.name for folder in run.store.folder.glob("*.damaged"))
    if aside:
        shown["put aside"] = ", ".join(aside)
    if (run.path / "evaluation.json").is_file():
        summary = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
        for name, scores in summary["scores"].items():
            shown[f"{summary['split']} MSE, {name}"] = f"{scores['mse']:.4f}"
    _print(shown)
    if damaged:
        raise UserError(f"{run.path}: damaged: {', '.join(damaged)}")


def _checkpoint(checkpoint: Checkpoint, *, verify: bool) -> None:
    from trainer.checkpoint.storage import tensor_shapes

    wrong = checkpoint.verify(contents=verify)
    if wrong is not None:
        raise UserError(f"{checkpoint.path} is damaged: {wrong}")
    description = checkpoint.description()
    shapes = tensor_shapes(checkpoint.path)
    weights = {n: s for n, s in shapes.items() if n.startswith("weights/")}
    parameters = sum(math.prod(shape) for shape in weights.values())
    size = sum(size for size, _ in read_manifest(checkpoint.path).values())
    _print(
        {
            "checkpoint": str(checkpoint.path),
            "step": str(description["step"]),
            "samples seen": f"{description['samples']:,}",
            "written by": describe(description["layout"]),
            "parameters": f"{parameters:,} in {len(weights)} tensors",
            "tensors": f"{len(shapes)}: weights in fp32 and AdamW's moments",
            "size": f"{size / 2**20:.1f} MiB",
            "whole": "every byte by its sum"
            if verify
            else "by its files' sizes; --verify reads all",
        }
    )


def _weights(source: WeightsSource) -> None:
    wrong = source.verify()
    if wrong is not None:
        raise UserError(f"{source.path} is damaged: {wrong}")
    shapes = {n: s for n, s in source.shapes().items() if n.startswith("weights/")}
    facts = source.facts
    _print(
        {
            "export": str(source.path),
            "step": str(source.step),
            "architecture": source.settings.model.architecture,
            "forecasts": f"{facts.shape.prediction_length} points of {', '.join(facts.channels)} "
            f"from {facts.shape.context_length}",
            "parameters": f"{sum(map(math.prod, shapes.values())):,} in {len(shapes)} tensors",
            "size": f"{sum(f.stat().st_size for f in source.path.iterdir()) / 2**20:.1f} MiB",
        }
    )
