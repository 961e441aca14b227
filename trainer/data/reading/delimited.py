"""Delimited text: its encoding, separator and header are found out, and its cells read as texts."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.csv

from model.errors import UserError
from model.sentences import counted
from trainer.data.reading.compression import BROKEN, opened, suffix_of, unreadable
from trainer.data.reading.problems import Problems

SUFFIXES = (".csv", ".tsv", ".txt", ".tab", ".dat")

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SAMPLE_BYTES = 2**18
BLOCK_BYTES = 2**24
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""First bytes of a file -> its encoding."""

_NUMBER = re.compile(r"^[+-]?[\d.,]*\d[\d.,]*(?:[eE][+-]?\d+)?%?$")
_TIME = re.compile(r"^\d{1,4}[-/.]\d{1,2}([-/.]\d{1,4})?([T ]\d{1,2}(:\d{2}){0,2}.*)?$")


@dataclass(frozen=True)
class Dialect:
    """How a file of delimited text is written."""

    encoding: str
    separator: str
    names: tuple[str, ...]
    """Columns; one without a name is `column N`."""
    skipped: int
    """Lines before the first row of data."""
    left_out: frozenset[int]
    """Further lines, counted from 1, that the user left out."""
    notes: tuple[str, ...]


def is_delimited(path: Path) -> bool:
    """Return whether a file's name says that it is delimited text, maybe compressed."""
    return suffix_of(path) in SUFFIXES


def find_dialect(
    path: Path,
    *,
    encoding: str | None = None,
    separator: str | None = None,
    skip_rows: int | list[int] = 0,
) -> Dialect:
    """Return how a file is written; what is given is not looked for.

    Raises UserError where the header cannot be told, naming the setting that tells it.
    """
    try:
        with opened(path) as file:
            sample = file.read(SAMPLE_BYTES)
            is_whole = not file.read(1)
    except BROKEN as error:
        raise unreadable(path, error) from None
    if not sample.strip():
        raise UserError(f"data.source: {path} is empty")
    encoding, text = _decoded(path, sample, encoding)
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if not is_whole and len(lines) > 1:
        del lines[-1]  # it may be cut
    own = frozenset(skip_rows if isinstance(skip_rows, list) else range(1, skip_rows + 1))
    kept = [
        (number, line)
        for number, line in enumerate(lines, start=1)
        if number not in own and line.strip()
    ]
    while len(kept) > 1 and kept[0][1].startswith("#") and not own:
        del kept[0]
    if not kept:
        raise UserError(f"data.skip_rows: {path} has no line besides those")
    notes = []
    if separator is None:
        separator = _separator(path, kept[:200])
        if separator != ",":
            notes.append(f"{path}: cells are divided by {SEPARATORS[separator]}")
    rows = [_cells(path, number, line, separator) for number, line in kept[:200]]
    _check_header(path, rows, kept)
    names = tuple(name.strip() or f"column {at}" for at, name in enumerate(rows[0], start=1))
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"data.source: {path} has two columns called {twice}; rename one")
    header = kept[0][0]
    later = frozenset(number for number in own if number > header)
    return Dialect(encoding, separator, names, header, later, tuple(notes))


def read_texts(path: Path, dialect: Dialect, problems: Problems) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, block after block, with each cell as its text.

    Rows with more or fewer cells than the header are left out. Raises UserError, naming the line,
    by the policy of `problems`.
    """
    wrong: list[pa.csv.InvalidRow] = []
    """The first one alone: a file may have many."""
    count = 0

    def on_wrong(row: pa.csv.InvalidRow) -> str:
        nonlocal count
        count += 1
        if not wrong:
            wrong.append(row)
        return "skip"

    try:
        with opened(path) as file:
            content = _Content(file, dialect)
            if content.is_empty:
                return
            blocks = pa.csv.open_csv(
                content,
                pa.csv.ReadOptions(
                    use_threads=False, column_names=list(dialect.names), block_size=BLOCK_BYTES
                ),
                pa.csv.ParseOptions(
                    delimiter=dialect.separator,
                    newlines_in_values=True,
                    invalid_row_handler=on_wrong,
                ),
                pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(dialect.names, pa.string()),
                    strings_can_be_null=False,
                ),
            )
            for block in blocks:
                if wrong and problems.policy == "refuse":
                    break
                yield block
            if wrong:
                _report(path, wrong[0], count, dialect, problems)
    except UnicodeDecodeError:
        raise _not_encoded(path, dialect.encoding) from None
    except BROKEN as error:
        if "UTF8" in str(error):
            raise _not_encoded(path, dialect.encoding) from None
        raise unreadable(path, error) from None


def _report(
    path: Path, first: pa.csv.InvalidRow, count: int, dialect: Dialect, problems: Problems
) -> None:
    """Report `count` rows with a wrong number of cells, of which one is the first."""
    text = first.text if len(first.text) <= 60 else f"{first.text[:60]}..."
    line = _line_of(path, dialect, first.text)
    mend = "mend it"
    if line is not None and dialect.skipped == 1:
        others = sorted({*dialect.left_out, line})
        mend += f", or set 'data.skip_rows=[{','.join(map(str, others))}]'"
    where = "" if line is None else f", line {line}"
    problems.lose(
        "rows with more or fewer cells than the header, left out",
        f"data.source: {path}{where}: {text!r} has {counted(first.actual_columns, 'cell')}, and "
        f"the header {first.expected_columns}",
        mend=mend,
        count=count,
    )


def _line_of(path: Path, dialect: Dialect, text: str) -> int | None:
    """Return the number of the first line after the header that is `text`; None for no such."""
    with opened(path) as file:
        for number, line in enumerate(_in_utf8(file, dialect.encoding), start=1):
            is_text = line.decode("utf-8", "replace").rstrip("\r\n") == text
            if is_text and number > dialect.skipped and number not in dialect.left_out:
                return number
    return None


def _not_encoded(path: Path, encoding: str) -> UserError:
    frequent = ", such as data.encoding=cp1252 (Western European)" if encoding != "cp1252" else ""
    return UserError(
        f"data.encoding: {path} is not {encoding.upper()}; convert it, or set data.encoding to "
        f"what it was written in{frequent}"
    )


def _decoded(path: Path, sample: bytes, encoding: str | None) -> tuple[str, str]:
    """Return the encoding and the text of a file's beginning."""
    marked = next((name for mark, name in MARKS.items() if sample.startswith(mark)), None)
    encoding = encoding or marked or "utf-8"
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        return encoding, decoder.decode(sample).removeprefix("\ufeff")
    except LookupError:
        raise UserError(
            f"data.encoding: there is no {encoding!r}; cp1252 is a frequent one"
        ) from None
    except UnicodeDecodeError:
        raise _not_encoded(path, encoding) from None


def _cells(path: Path, number: int, line: str, separator: str) -> list[str]:
    """Return the cells of a line. Raises UserError where it is none."""
    try:
        return next(csv.reader([line], delimiter=separator))
    except csv.Error:
        raise UserError(
            f"data.source: {path}, line {number}: a carriage return stands within it; save the "
            "file with line ends of one kind, or it is no table of text"
        ) from None


def _separator(path: Path, lines: list[tuple[int, str]]) -> str:
    """Return what divides the cells: what most lines have as many of, and more than none."""
    best, most = ",", 0.0
    for separator in SEPARATORS:
        counts = Counter(len(_cells(path, *line, separator)) for line in lines)
        cells, often = counts.most_common(1)[0]
        score = often / len(lines) * (1 + 0.01 * cells) if cells > 1 else 0.0
        if score > most + 1e-9:
            best, most = separator, score
    return best


def _check_header(path: Path, rows: list[list[str]], kept: list[tuple[int, str]]) -> None:
    """Raise UserError where the first line is no header, or not the only one."""
    cells = Counter(len(row) for row in rows).most_common(1)[0][0]
    header = next((at for at, row in enumerate(rows) if len(row) == cells), 0)
    if header > 0 and len(rows[0]) < cells:
        line = kept[header][0]
        raise UserError(
            f"data.source: {path}: the header seems to be line {line}; "
            f"set data.skip_rows={line - 1}"
        )
    first = [cell.strip() for cell in rows[0] if cell.strip()]
    if first and all(_NUMBER.match(cell) or _TIME.match(cell) for cell in first):
        raise UserError(
            f"data.source: {path} has no header line: its first line is {kept[0][1][:60]!r}; "
            "add one that names the columns"
        )
    data = [row for row in rows[1:] if len(row) == cells]
    further = 0
    while further < min(5, len(data) - 3) and _is_further_header(
        data[further], data[further + 1 :]
    ):
        further += 1
    if further:
        numbers = [kept[at][0] for at in range(1, further + 1)]
        many = further > 1
        lines = f"lines {numbers[0]} to {numbers[-1]} look" if many else f"line {numbers[0]} looks"
        raise UserError(
            f"data.source: {path}: {lines} like further headers; leave them out with "
            f"data.skip_rows={numbers}"
        )


def _is_further_header(row: list[str], below: list[list[str]]) -> bool:
    """Return whether a row has no number in any column that has numbers alone further down."""
    later = below[5:]
    columns = [
        at
        for at in range(len(row))
        if later and sum(bool(_NUMBER.match(line[at].strip())) for line in later) > 0.9 * len(later)
    ]
    values = [row[at].strip() for at in columns]
    is_empty = not any(cell.strip() for cell in row)
    has_time = any(_TIME.match(cell.strip()) for cell in row)
    return bool(columns) and not (is_empty or has_time or any(map(_NUMBER.match, values)))


class _Content(io.RawIOBase):
    """The lines of a file that hold rows of data, in UTF-8."""

    def __init__(self, file: IO[bytes], dialect: Dialect) -> None:
        self._file = _in_utf8(file, dialect.encoding)
        left_out = {*range(1, dialect.skipped + 1), *dialect.left_out}
        kept = (
            line
            for number in range(1, max(left_out) + 1)
            if (line := self._file.readline()) and number not in left_out
        )
        self._before = b"".join(kept)
        self.is_empty = not self._before.strip() and not self._file.peek().strip()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        before, self._before = self._before, b""
        return before or self._file.read(size)


def _in_utf8(file: IO[bytes], encoding: str) -> io.BufferedReader:
    """Return a file's content in UTF-8."""
    is_utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8", "ascii")
    raw = file if is_utf8 else cast(IO[bytes], _Recoded(file, encoding))
    return io.BufferedReader(cast(io.RawIOBase, raw), 2**20)


class _Recoded(io.RawIOBase):
    """A file of another encoding, in UTF-8."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            data = self._file.read(2**20)
            self._rest = self._decoder.decode(data, final=not data).encode()
            if not data:
                break
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size
