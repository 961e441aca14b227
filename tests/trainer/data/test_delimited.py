"""Delimited text is read however it was written, or refused with the setting that helps."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from model.errors import UserError
from trainer.data.reading.delimited import find_dialect, is_delimited, read_texts
from trainer.data.reading.problems import Problems

TABLE = "time,load,place\n" + "".join(
    f"2024-01-01 {hour:02}:00,{hour}.5,Zürich\n" for hour in range(24)
)


def read(file: Path, **options: Any) -> pd.DataFrame:
    """Return all rows of a file."""
    dialect = find_dialect(file, **options)
    blocks = [block.to_pandas() for block in read_texts(file, dialect, Problems())]
    return pd.concat(blocks, ignore_index=True)


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    """Return a file with this text."""
    file = folder / "table.csv"
    file.write_bytes(text.encode(encoding))
    return file


def check(frame: pd.DataFrame) -> None:
    """Compare with TABLE."""
    assert list(frame) == ["time", "load", "place"] and len(frame) == 24
    assert frame["load"].tolist() == [f"{hour}.5" for hour in range(24)]
    assert frame["place"].tolist() == ["Zürich"] * 24


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_separators(tmp_path: Path, separator: str, ending: str) -> None:
    text = TABLE.replace(",", separator).replace("\n", ending)
    check(read(written(tmp_path, text)))
    check(read(written(tmp_path, text), separator=separator))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    file = written(tmp_path, TABLE, encoding)
    if encoding in ("utf-16-le", "cp1252"):  # nothing in the file says so
        check(read(file, encoding=encoding))
    else:
        check(read(file))


def test_another_encoding_is_asked_for(tmp_path: Path) -> None:
    file = written(tmp_path, TABLE, "cp1252")
    with pytest.raises(UserError, match=r"is not UTF-8; .* such as data.encoding=cp1252"):
        read(file)
    with pytest.raises(UserError, match="there is no 'cp99999'"):
        read(file, encoding="cp99999")


def compressed(folder: Path, suffix: str) -> Path:
    """Return TABLE in a compressed file."""
    file, content = folder / f"table.CSV{suffix}", TABLE.encode()
    if suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("table.csv", content)
    elif suffix == ".zst":
        with pa.CompressedOutputStream(str(file), "zstd") as stream:
            stream.write(content)
    else:
        packed = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress(content)
        file.write_bytes(packed)
    return file


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst", ".zip"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    file = compressed(tmp_path, suffix)
    assert is_delimited(file)
    check(read(file))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst", ".zip"])
def test_a_compressed_file_that_is_cut(tmp_path: Path, suffix: str) -> None:
    file = compressed(tmp_path, suffix)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=r"cannot read .*table.CSV"):
        read(file)


def test_several_files_in_one_archive(tmp_path: Path) -> None:
    file = tmp_path / "two.csv.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.csv", TABLE)
        archive.writestr("b.csv", TABLE)
    with pytest.raises(UserError, match="holds 2 files"):
        read(file)


@pytest.mark.parametrize("name", ["a.parquet", "a.xlsx", "a", "a.gz", "csv"])
def test_other_files_are_no_delimited_text(name: str) -> None:
    assert not is_delimited(Path(name))


def test_comments_before_the_header_are_skipped(tmp_path: Path) -> None:
    check(read(written(tmp_path, f"# station 17\n# units: kWh, local\n\n{TABLE}")))


def test_what_stands_before_the_header_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, f"Data as is\n\nwithout warranty\n{TABLE}")
    with pytest.raises(UserError, match=r"header seems to be line 4; set data.skip_rows=3"):
        read(file)
    check(read(file, skip_rows=3))


def test_further_headers_are_named(tmp_path: Path) -> None:
    head, rows = TABLE.split("\n", 1)
    file = written(tmp_path, f"{head}\nunit,kWh,\nsource,meter,\n{rows}")
    with pytest.raises(UserError, match=r"lines 2 to 3 look like .*data.skip_rows=\[2, 3\]"):
        read(file)
    check(read(file, skip_rows=[2, 3]))


@pytest.mark.parametrize("rows", ["2024-01-01 00:00,10.5\n", "1,2,3\n", "01/02/2024,12%\n"])
def test_a_missing_header_is_noticed(tmp_path: Path, rows: str) -> None:
    with pytest.raises(UserError, match="has no header line"):
        read(written(tmp_path, rows * 20))


def test_years_and_codes_may_be_names_of_columns(tmp_path: Path) -> None:
    frame = read(written(tmp_path, "country,2019,2020\nDE,1,2\nFR,3,4\n"))
    assert list(frame) == ["country", "2019", "2020"]


def test_a_column_without_a_name_has_its_number(tmp_path: Path) -> None:
    frame = read(written(tmp_path, ",load\n2024-01-01,1\n2024-01-02,2\n"))
    assert list(frame) == ["column 1", "load"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has two columns called load"):
        read(written(tmp_path, "time,load,load\n2024-01-01,1,2\n"))


@pytest.mark.parametrize("row", ["2024-01-02 00:00,1", "2024-01-02 00:00,1,a,b"])
def test_a_row_of_another_length_is_named(tmp_path: Path, row: str) -> None:
    file = written(tmp_path, f"{TABLE}{row}\n{TABLE.split(chr(10), 1)[1]}")
    with pytest.raises(UserError, match=rf"line 26: '{row}' has {row.count(',') + 1} cells"):
        read(file)


def test_quoted_cells(tmp_path: Path) -> None:
    text = 'name,load\n"a, b",1\n"c ""d""",2\n"e\nf",3\n'
    assert read(written(tmp_path, text))["name"].tolist() == ["a, b", 'c "d"', "e\nf"]


def test_texts_stay_texts(tmp_path: Path) -> None:
    """Zeros before a number, and names that look like marks for missing."""
    frame = read(written(tmp_path, "id,load\n007,1\nNA,\nnull,3\n"))
    assert frame["id"].tolist() == ["007", "NA", "null"] and frame["load"].tolist() == [
        "1",
        "",
        "3",
    ]


@pytest.mark.parametrize("text", ["", "\n\n", "  \n"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="is empty"):
        read(written(tmp_path, text))


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    file = written(tmp_path, "time,load\n")
    assert sum(len(block) for block in read_texts(file, find_dialect(file), Problems())) == 0


def test_large_files_come_in_blocks(tmp_path: Path) -> None:
    rows = 800_000
    text = "time,load\n" + "2024-01-01 00:00:00,1.5\n" * rows
    file = written(tmp_path, text)
    blocks = [len(block) for block in read_texts(file, find_dialect(file), Problems())]
    assert len(blocks) > 1 and sum(blocks) == rows


def test_a_carriage_return_within_a_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"date,v\n2024-01-01,1\n2024-01-02,2\r2024-01-03,3\n")
    with pytest.raises(UserError, match=r"a\.csv, line 3: a carriage return stands within it"):
        find_dialect(file)
    file.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(UserError, match=r"a\.csv, line \d+: a carriage return stands within it"):
        find_dialect(file, encoding="latin1")


def test_a_row_with_other_cells_names_its_line_and_can_be_left_out(tmp_path: Path) -> None:
    """Also after a cell with line ends, and in another encoding."""
    text = 'date,v,é\n2024-01-01,1,"two\nlines"\n2024-01-02,2,b\n2024-01-03,3\n2024-01-04,4,d\nx\n'
    for encoding in ("utf-8", "cp1252"):
        file = tmp_path / f"{encoding}.csv"
        file.write_bytes(text.encode(encoding))
        dialect = find_dialect(file, encoding=encoding)
        with pytest.raises(UserError) as caught:
            list(read_texts(file, dialect, Problems()))
        assert f"{file}, line 5: '2024-01-03,3' has 2 cells, and the header 3" in str(caught.value)
        assert "set 'data.skip_rows=[5]', or leave it out with data.on_error=skip" in str(
            caught.value
        )
        dialect = find_dialect(file, encoding=encoding, skip_rows=[5])
        with pytest.raises(UserError, match=r"line 7: 'x' has 1 cell, .*'data\.skip_rows=\[5,7\]'"):
            list(read_texts(file, dialect, Problems()))
        problems = Problems("skip")
        blocks = read_texts(file, find_dialect(file, encoding=encoding), problems)
        assert sum(len(block) for block in blocks) == 3
        [told] = problems.sentences()
        assert told.startswith("rows with more or fewer cells than the header, left out: 2, the fi")
