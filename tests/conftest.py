"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations are named as users name them, from the top of the checkout."""
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    """A folder with ETTh1.csv.gz and others, named by FORESCALE_TEST_DATA."""
    folder = os.environ.get("FORESCALE_TEST_DATA")
    if not folder:
        pytest.skip("FORESCALE_TEST_DATA names no folder with ETTh1.csv.gz")
    return Path(folder)
