"""Ways to damage a file, and the files of a checkpoint that two ranks have written."""

from __future__ import annotations

from pathlib import Path

FILES = ["checkpoint.json", ".metadata", "__0_0.distcp", "__1_0.distcp", "manifest"]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
