"""Trains in sys.argv[1] with metrics.jsonl on a full disk from step 3 to step 5."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import forescale
from trainer.engine.engine import Engine

write, train_step = os.write, Engine.train_step
step = 0


def _step(self: Engine, number: int, *batches: Any) -> Any:
    global step
    step = number
    return train_step(self, number, *batches)


def _write(file: int, content: bytes) -> int:
    """Half a line fits, then no more."""
    if 3 <= step <= 5 and Path(f"/proc/self/fd/{file}").readlink().name == "metrics.jsonl":
        if len(content) > 40:
            return write(file, content[:40])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(file, content)


if __name__ == "__main__":
    with patch("os.write", _write), patch.object(Engine, "train_step", _step):
        forescale.train(
            "configs/tiny.yaml",
            run_dir=Path(sys.argv[1]),
            **{"data.rows": 800, "train.steps": 8, "checkpoint.every": 2, "checkpoint.keep": 9},
        )
