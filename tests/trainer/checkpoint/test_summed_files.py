"""Sums that are taken while a file is written are those of the file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from trainer.checkpoint.manifest import entry
from trainer.checkpoint.summed_files import LARGE, SummingFileSystem
from trainer.checkpoint.tensor_files import Writer


@pytest.mark.parametrize("sizes", [[], [0], [3], [LARGE], [LARGE - 1, LARGE + 1, 5, 3 * LARGE]])
def test_sums_are_those_of_the_file(tmp_path: Path, sizes: list[int]) -> None:
    files = SummingFileSystem()
    memory = bytearray(b"".join(bytes([n % 251]) * size for n, size in enumerate(sizes)))
    at = 0
    with files.create_stream(tmp_path / "file", "wb") as stream:
        for size in sizes:
            piece = memoryview(memory)[at : at + size]
            assert stream.write(piece) == size
            piece[:] = bytes(size)  # the memory is the caller's again
            at += size
        assert stream.tell() == at
    assert files.entries == {"file": entry(tmp_path / "file")}


def test_a_file_that_fails_has_no_sum(tmp_path: Path) -> None:
    files = SummingFileSystem()
    with (
        pytest.raises(OSError, match="full"),
        files.create_stream(tmp_path / "file", "wb") as stream,
    ):
        stream.write(bytes(2 * LARGE))
        raise OSError("the disk is full")
    with (
        pytest.raises(io.UnsupportedOperation),
        files.create_stream(tmp_path / "b", "wb") as stream,
    ):
        stream.seek(0)
    assert files.entries == {}


def test_a_checkpoint_s_files_have_their_sums(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = Writer(tmp_path)
    state = {"large": torch.randn(300, 300), "small": torch.arange(3.0), "none": torch.zeros(0, 2)}
    save(state, storage_writer=writer)
    found = {file.name: entry(file) for file in tmp_path.iterdir() if file.name[0] != "."}
    assert writer.entries() == found and len(found) == 1
