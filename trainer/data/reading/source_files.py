"""The files of a source: one, those of a folder, or those that a pattern matches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from model.errors import UserError
from model.sentences import shortened
from trainer.data.reading import columnar, delimited, text_records
from trainer.data.reading.compression import suffix_of
from trainer.data.set_format import is_set


def natural(name: object) -> list[tuple[int, str]]:
    """Return what to sort names by."""
    pieces = re.split(r"(\d+)", str(name))
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def find_files(text: str) -> tuple[Path, list[Path]]:
    """Return a source's path, and its files in the order of their names."""
    path = Path(text).expanduser()
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = _in_folder(path)
    else:
        files = sorted(filter(Path.is_file, _matching(path)), key=natural)
        if not files:
            where = (
                ""
                if path.is_absolute()
                else f" in {Path.cwd()}, where the command runs; name its whole path"
            )
            raise UserError(f"data.source: there is no file {path}{where}")
    kinds = {suffix_of(file) for file in files}
    known = {
        *delimited.SUFFIXES,
        *columnar.PARQUET,
        *columnar.ARROW,
        *text_records.JSON_LINES,
        *text_records.MONASH,
    }
    if kinds & {".xlsx", ".xls", ".ods"}:
        raise UserError(f"data.source: {files[0]} is a spreadsheet; save it as CSV")
    if not kinds <= known:
        odd = next(file for file in files if suffix_of(file) not in known)
        raise UserError(
            f"data.source: {odd} is none of CSV, TSV, Parquet, Feather, Arrow, JSON lines and .tsf "
            "by its name; rename it"
        )
    return path, files


def _matching(pattern: Path) -> Iterator[Path]:
    """Return what a pattern such as data/*.csv matches; nothing where it is no pattern."""
    base = Path(pattern.anchor)
    relative = str(pattern.relative_to(base))
    return base.glob(relative) if set("*?[") & set(relative) else iter(())


def _in_folder(folder: Path) -> list[Path]:
    """Return the files of a folder that have series; those of one kind, or none is meant."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in folder.iterdir() if child.is_dir())
        raise UserError(
            f"data.source: {folder} has the parts {shortened(splits)}; name one, e.g. "
            f"{folder}/{splits[0] if splits else 'train'}"
        )
    files = [
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(p[0] in "._" for p in file.relative_to(folder).parts)
    ]
    if (folder / "state.json").is_file() or (folder / "dataset_info.json").is_file():
        files = [file for file in files if file.suffix == ".arrow"]
    sets = sorted(child.name for child in folder.iterdir() if is_set(child))
    if sets:
        raise UserError(
            f"data.source: {folder} holds the sets {shortened(sets)}; name one, e.g. "
            f"{folder / sets[0]}, or several as a mixture of sources"
        )
    if is_set(folder):
        raise UserError(f"data.source: {folder} is a set already; name it as data.source")
    kinds: dict[str, list[Path]] = {}
    for file in files:
        suffix = suffix_of(file)
        group = "table" if suffix in delimited.SUFFIXES else suffix
        kinds.setdefault(group, []).append(file)
    readable = {"table", *columnar.PARQUET, *columnar.ARROW, *text_records.JSON_LINES, ".tsf"}
    chosen = [kind for kind in kinds if kind in readable]
    if len(chosen) != 1:
        has = f"files of several kinds ({shortened(sorted(chosen))})" if chosen else "no file"
        raise UserError(
            f"data.source: the folder {folder} has {has} of series; name the files, e.g. "
            f"{folder}/*.csv"
        )
    return sorted(kinds[chosen[0]], key=natural)
