"""Imported once by the server that test ranks are forked from; it must run no tensor operation."""

import gc
import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["OMP_NUM_THREADS"] = "1"

import torch

import trainer.job  # noqa: F401
from parallel.deepspeed_adapter import import_deepspeed
from tests.settings import planned

LATER = (
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pytest",
    "torch._dynamo",
    "trainer.engine.pretrained",
    "tsdata",
)
"""Modules that a rank imports with its test, or while it trains."""

import_deepspeed(torch.device("cpu"))
for module in LATER:
    with suppress(ImportError):
        import_module(module)

# What else a rank loads when it first plans a run: patterns, time zones, parts of pandas.
planned(Path("nowhere"), {})

# Objects that a rank's garbage collector looked at would be copied to the rank, page by page.
gc.freeze()
