"""Imported once by the server that test ranks are forked from; it must run no tensor operation."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["OMP_NUM_THREADS"] = "1"

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
import torch._dynamo  # noqa: F401

import trainer.job  # noqa: F401
