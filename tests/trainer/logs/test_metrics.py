"""metrics.jsonl has each step once, whatever became of the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import patch

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


def test_a_row_that_is_there_twice_is_kept_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"step": {s}, "loss": {n}}}\n' for n, s in enumerate((1, 3, 2, 2))))
    with MetricsLog(file, 3) as log:
        assert log.last == {"step": 3, "loss": 1}
    rows = [(row["step"], row["loss"]) for row in read_metrics(file)]
    assert rows == [(1, 0), (2, 3), (3, 1)]
    assert "1 rows were double" in caplog.text and "no row" not in caplog.text


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (None, "metrics.jsonl is gone: 3 of 3 steps have no row: 1-3"),
        ("", "metrics.jsonl: 3 of 3 steps have no row: 1-3"),
        ('{"step": 2, "loss": 1.0}\n' * 2, "metrics.jsonl: 2 of 3 steps have no row: 1, 3"),
    ],
)
def test_a_file_that_was_removed_or_emptied_is_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, held: str | None, said: str
) -> None:
    file = tmp_path / "metrics.jsonl"
    if held is not None:
        file.write_text(held)
    MetricsLog(file, 3).close()
    assert said in caplog.text
    caplog.clear()
    file.unlink()
    MetricsLog(file, 3, is_continued=False).close()  # the steps were made in another folder
    assert not caplog.text


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 2, "loss": "0.5"}',
        '{"step": 2, "loss": {"a": 1}}',
        '{"step": 2, "load": [0.5, "x"]}',
        '{"step": "2", "loss": 0.5}',
        '{"step": true, "loss": 0.5}',
        '{"loss": 0.5}',
        "[" * 100_000,
        "5",
        '{"step": ' + "9" * 5000 + "}",
    ],
)
def test_a_line_of_something_else_is_no_row(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1, "loss": null}}\n{line}\n')
    assert read_metrics(file) == [{"step": 1, "loss": None}]


def test_a_file_that_was_cut_while_the_disk_is_full_has_whole_lines_only(tmp_path: Path) -> None:
    """The row that the disk did not take is removed from where it was written, as others are."""
    file, write = tmp_path / "metrics.jsonl", os.write
    with MetricsLog(file, 0) as log:
        for step in range(1, 9):
            log.write({"step": step, "loss": 0.5})
        os.truncate(file, 0)

        def half(descriptor: int, content: bytes) -> int:
            return write(descriptor, content[: len(content) // 2])

        with patch("os.write", half):
            log.write({"step": 9, "loss": 0.5})
        assert file.read_bytes() == b""
        with patch("os.write", side_effect=OSError(errno.ENOSPC, "full")):
            log.write({"step": 10, "loss": 0.5})
        assert file.read_bytes() == b""
        log.write({"step": 11, "loss": 0.5})
    assert [row["step"] for row in read_metrics(file)] == [9, 10, 11]
    assert b"\0" not in file.read_bytes()


@pytest.mark.parametrize("cut", [0, 10])
def test_a_last_row_that_is_not_there_any_more_can_be_completed(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "metrics.jsonl"
    with MetricsLog(file, 0) as log:
        log.write({"step": 1, "loss": 0.5})
        os.truncate(file, cut)
        log.complete({"step": 1, "loss": 0.5, "validation_mse": 0.25})
    assert read_metrics(file) == [{"step": 1, "loss": 0.5, "validation_mse": 0.25}]
    assert b"\0" not in file.read_bytes()


def test_a_file_that_is_removed_while_it_is_written_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    with MetricsLog(file, 0) as log:
        log.write({"step": 1, "loss": 0.5})
        file.unlink()
        log.write({"step": 2, "loss": 0.25})
        log.sync()
        log.write({"step": 3, "loss": 0.125})
    assert [row["step"] for row in read_metrics(file)] == [1, 2, 3]
    assert "metrics.jsonl was removed, and is written again" in caplog.text
