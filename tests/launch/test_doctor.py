"""The doctor reports every part of a machine, and no secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from launch.cli import main


def test_the_doctor_reports_every_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    main(["doctor"])
    said = capsys.readouterr().out
    titles = re.findall(r"^## (.+)$", said, re.MULTILINE)
    assert titles == ["machine", "versions", "devices", "attention kernels", "launchers", "network"]
    assert f"torch: {torch.__version__}" in said
    assert re.search(
        r"^disk here: [\d.]+ GiB free, [\d,]+ MB/s written and synced$", said, re.MULTILINE
    )
    kernels = re.findall(r"^(?:standard|xformer|flash), \w+, \w+: (.+)$", said, re.MULTILINE)
    assert len(kernels) == 6
    assert all(re.search(r"off by \de-\d\d$", kernel) for kernel in kernels), kernels
    assert re.search(r"^torchrun: /", said, re.MULTILINE)
    assert "NCCL_DEBUG: INFO" in said and "hidden" not in said
    assert re.search(r"^lo: ", said, re.MULTILINE)


def test_a_program_that_fails_is_told_by_the_first_line_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\necho no cluster here >&2\necho and more >&2\nexit 1\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    main(["doctor"])
    assert "\nsrun --mpi: fails: no cluster here\n" in capsys.readouterr().out
