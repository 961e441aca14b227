"""Imported once by the server that test ranks are forked from; it must run no tensor operation."""

import gc
import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["OMP_NUM_THREADS"] = "1"

import matplotlib.pyplot
import torch
import torch._dynamo
import tsdata  # noqa: F401

import trainer.engine.pretrained
import trainer.job
from trainer.engine.engine import import_deepspeed

import_deepspeed(torch.device("cpu"))

import deepspeed.comm.mori
import deepspeed.module_inject.auto_ep_layer
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401

gc.freeze()  # or each rank's first collection copies every page of what was imported
