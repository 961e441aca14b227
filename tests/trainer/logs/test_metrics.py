"""metrics.jsonl has each step once, whatever became of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.logs.metrics import MetricsLog, read_metrics


def test_rows_that_are_missing_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f'{{"step": {step}, "loss": 0.5}}\n'.encode() for step in range(1, 9)]
    lines[2] = b"\xff\xfe garbled\n"
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(lines))
    log = MetricsLog(file, 8)
    log.close()
    assert "1 of 8 steps have no row" in caplog.text
    assert [row["step"] for row in read_metrics(file)] == [1, 2, 4, 5, 6, 7, 8]


def test_metrics_go_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    log = MetricsLog(file, 1)
    log.write({"step": 2, "loss": 0.25})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(file)] == [(1, 1.0), (2, 0.25)]
