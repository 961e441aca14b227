"""`forescale export SOURCE OUT`: weights in a folder, or a graph in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from launch.output import showing_log
from model.errors import UserError
from model.sentences import nearest
from trainer.weights.source import find

GRAPHS = (".onnx", ".pt2")
"""Ends of OUT that ask for a graph."""

WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""Ends of other tools' files of weights, by which nobody calls a folder."""


def export(source: Path, out: Path, *, precision: Literal["fp32", "bf16"]) -> None:
    """Write weights to the folder `out`, or a graph to the file, as its name says.

    Raises UserError where that cannot be.
    """
    with showing_log():
        if out.suffix not in GRAPHS:
            if nearest(out.suffix.lower(), GRAPHS) or out.suffix in WEIGHT_FILES:
                raise UserError(
                    f"{out}: a file ends with {' or '.join(GRAPHS)}; name one of these, or a "
                    f"folder without {out.suffix}"
                )
            from trainer.weights.export import export as write

            write(find(source), out, precision=precision)
            return
        if precision != "fp32":
            raise UserError("--precision: a graph is of fp32; leave it out, or name a folder")
        from trainer.forecast.forecaster import Forecaster
        from trainer.forecast.graph import export_graph

        export_graph(Forecaster.load(source), out)
