"""`forescale show PATH`: what a run folder, a checkpoint, an export or a set of series holds.

Each is described as one object, as `--json` prints it; the text for people is made of that.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic's wish before Python 3.12

from launch.output import check_target, print_json, showing_log
from launch.show_set import describe_set, draw_set
from launch.show_set import rows_of as _set_rows
from launch.text_rows import print_rows
from model.errors import UserError
from model.sentences import first_line
from model.validation import check_content
from parallel.layout import describe
from trainer.checkpoint.keys import WEIGHTS, of_kinds
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.store import Checkpoint
from trainer.data.set_format import is_set
from trainer.files import read_json
from trainer.logs.log import log
from trainer.logs.metrics import read_metrics
from trainer.run.folder import RunFolder
from trainer.weights.source import WeightsSource, find

Known = dict[str, Any]
"""What is known of a path, with its `kind`; docs/cluster.md lists the keys."""


def show_path(
    path: Path, *, verify: bool, as_json: bool, picture: Path | None = None, force: bool = False
) -> None:
    """Print what `path` holds; `verify` reads every byte of checkpoints and sets.

    A set is drawn into the file `picture`, if one is given; `force` writes over one.

    Raises UserError where it holds nothing of Forescale's, or something damaged; what is known of a
    run folder with damaged checkpoints is printed first.
    """
    if picture is not None:
        check_target("--picture", picture, (".png",), force=force)
    elif force:
        raise UserError("--force: no file is written; name one by --picture")
    with showing_log(as_json=as_json):
        known = _describe(path, verify=verify)
    if picture is not None:
        if known["kind"] != "set":
            raise UserError(f"--picture: {path} is no set of series, which alone can be drawn")
        draw_set(path, picture)
    if as_json:
        print_json(known)
    else:
        print_rows(_ROWS[known["kind"]](known))
    damaged = [Path(c["path"]).name for c in known.get("checkpoints", []) if c["damage"]]
    if damaged:
        raise UserError(f"{path}: damaged: {', '.join(damaged)}")


# What is known


def _describe(path: Path, *, verify: bool) -> Known:
    if (path / "checkpoint.json").is_file():
        return _checkpoint(Checkpoint(path), verify=verify)
    if RunFolder(path).exists():
        return _run(RunFolder(path), verify=verify)
    if is_set(path):
        return describe_set(path, verify=verify)
    return _export(find(path))


def _run(run: RunFolder, *, verify: bool) -> Known:
    settings = run.configuration().settings
    rows = read_metrics(run.metrics_file)
    environment = _read_json(_ENVIRONMENT, run.environment_file) or {}
    ended = [marker for marker in ("done", "saved") if (run.path / marker).exists()]
    checkpoints = [
        {"path": str(c.path), "step": c.step, "damage": c.verify(contents=verify)}
        for c in run.store.committed()
    ]
    return {
        "kind": "run",
        "path": str(run.path),
        "state": ended[0] if ended else "unfinished",
        "step": rows[-1]["step"] if rows else 0,
        "steps": settings.train.steps,
        "data": settings.data.named,
        "layout": environment.get("layout"),
        "versions": environment.get("versions"),
        "last_step": rows[-1] if rows else None,
        "checkpoints": checkpoints,
        "best": _best(run.scores(), checkpoints),
        "verified": _verified(checkpoints) if verify else None,
        "quarantined": sorted(folder.name for folder in run.store.folder.glob("*.damaged")),
        "evaluation": _read_json(_EVALUATION, run.evaluation_file),
    }


def _best(scores: dict[int, float], checkpoints: list[Known]) -> int | None:
    """Return the step of the best checkpoint that is there; None where none has a score."""
    steps = [c["step"] for c in checkpoints if c["step"] in scores]
    return min(steps, key=lambda step: scores[step], default=None)


def _verified(checkpoints: list[Known]) -> dict[str, int]:
    """Return how many checkpoints were read and found intact, and how many files and bytes."""
    intact = [read_manifest(Path(c["path"])) for c in checkpoints if c["damage"] is None]
    return {
        "checkpoints": len(intact),
        "files": sum(len(entries) for entries in intact),
        "bytes": sum(size for entries in intact for size, _ in entries.values()),
    }


def _checkpoint(checkpoint: Checkpoint, *, verify: bool) -> Known:
    from trainer.checkpoint.tensor_files import tensor_shapes

    wrong = checkpoint.verify(contents=verify)
    if wrong is not None:
        raise UserError(f"{checkpoint.path} is damaged: {wrong}")
    description = checkpoint.description()
    shapes = tensor_shapes(checkpoint.path)
    weights = of_kinds(shapes, WEIGHTS)
    sizes = [size for size, _ in read_manifest(checkpoint.path).values()]
    return {
        "kind": "checkpoint",
        "path": str(checkpoint.path),
        "step": description["step"],
        "samples": description["samples"],
        "layout": description["layout"],
        "parameters": sum(map(math.prod, weights.values())),
        "weights": len(weights),
        "tensors": len(shapes),
        "files": len(sizes),
        "bytes": sum(sizes),
        "contents_verified": verify,
    }


def _export(source: WeightsSource) -> Known:
    wrong = source.verify()
    if wrong is not None:
        raise UserError(f"{source.path} is damaged: {wrong}")
    weights = of_kinds(source.shapes(), WEIGHTS)
    return {
        "kind": "export",
        "path": str(source.path),
        "step": source.step,
        "architecture": source.settings.model.architecture,
        "context_length": source.facts.shape.context_length,
        "prediction_length": source.facts.shape.prediction_length,
        "channels": list(source.facts.channels),
        "parameters": sum(map(math.prod, weights.values())),
        "weights": len(weights),
        "bytes": sum(file.stat().st_size for file in source.path.iterdir()),
    }


class _Environment(TypedDict):
    """What is shown of environment.json."""

    layout: dict[str, int]
    versions: dict[str, str | None]


class _Scores(TypedDict):
    """What is shown of a forecaster's scores."""

    mse: float


class _Evaluation(TypedDict):
    """What is shown of evaluation.json."""

    split: str
    scores: dict[str, _Scores]


_ENVIRONMENT, _EVALUATION = TypeAdapter(_Environment), TypeAdapter(_Evaluation)


def _read_json(adapter: TypeAdapter[Any], file: Path) -> Any:
    """Return what a file holds; None where there is none or, with a warning, it is spoiled."""
    if not file.exists():
        return None
    try:
        content = read_json(file)
        check_content(adapter, content, "it is of something else")
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read: %s", file, first_line(error))
        return None
    return content


# The text


def _run_rows(known: Known) -> dict[str, str]:
    state = "running or interrupted" if known["state"] == "unfinished" else known["state"]
    rows = {
        "run": known["path"],
        "state": f"{state}, step {known['step']} of {known['steps']}",
        "data": known["data"],
    }
    if known["layout"]:
        rows["layout"] = describe(known["layout"])
        rows["versions"] = ", ".join(f"{k} {v}" for k, v in known["versions"].items() if v)
    last = known["last_step"]
    if last:
        loss, norm = last.get("loss"), last.get("grad_norm")
        speed, skipped = last.get("tokens_per_second"), last.get("skipped_steps")
        rows["last step"] = (
            f"loss {_number(loss, '.4f')}, grad norm {_number(norm, '.3f')}, "
            f"{_number(speed, ',.0f')} tokens/s, {_number(skipped, '.0f')} steps skipped"
        )
    steps = [str(checkpoint["step"]) for checkpoint in known["checkpoints"]]
    rows["checkpoints"] = f"steps {', '.join(steps)}" if steps else "none"
    if known["best"] is not None:
        rows["checkpoints"] += f"; {known['best']} is the best"
    for checkpoint in known["checkpoints"]:
        if checkpoint["damage"]:
            rows[Path(checkpoint["path"]).name] = f"damaged: {checkpoint['damage']}"
    verified = known["verified"]
    if verified is not None:
        count, files = verified["checkpoints"], f"{verified['files']} files"
        rows["verified"] = (
            f"every byte of {count} checkpoint{'s' if count != 1 else ''} by its sum: {files}, "
            f"{_mebibytes(verified['bytes'])}"
        )
    if known["quarantined"]:
        rows["quarantined"] = ", ".join(known["quarantined"])
    evaluation = known["evaluation"]
    if evaluation:
        for name, scores in evaluation["scores"].items():
            rows[f"{evaluation['split']} MSE, {name}"] = f"{scores['mse']:.4f}"
    return rows


def _checkpoint_rows(known: Known) -> dict[str, str]:
    by_sizes = "by its files' sizes; --verify reads all"
    by_sums = f"every byte of its {known['files']} files by its sum"
    return {
        "checkpoint": known["path"],
        "step": str(known["step"]),
        "samples seen": f"{known['samples']:,}",
        "written by": describe(known["layout"]),
        "parameters": f"{known['parameters']:,} in {known['weights']} tensors",
        "tensors": f"{known['tensors']}: weights in fp32 and AdamW's moments",
        "size": _mebibytes(known["bytes"]),
        "whole": by_sums if known["contents_verified"] else by_sizes,
    }


def _export_rows(known: Known) -> dict[str, str]:
    channels, context = ", ".join(known["channels"]), known["context_length"]
    return {
        "export": known["path"],
        "step": str(known["step"]),
        "architecture": known["architecture"],
        "forecasts": f"{known['prediction_length']} points of {channels} from {context}",
        "parameters": f"{known['parameters']:,} in {known['weights']} tensors",
        "size": _mebibytes(known["bytes"]),
        "whole": "every byte of its weights by its sum",
    }


_ROWS = {
    "run": _run_rows,
    "checkpoint": _checkpoint_rows,
    "export": _export_rows,
    "set": _set_rows,
}


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "none"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
