"""Sources that lie elsewhere are copied once, and again where they have changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from model.errors import UserError
from tests.trainer.data.sets import csv, hourly, prepared
from trainer.config.table_settings import TableConfig
from trainer.data.prepared import open_set


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    """Return an empty object store in memory."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def test_a_file_in_an_object_store(tmp_path: Path, store: fsspec.AbstractFileSystem) -> None:
    store.pipe_file("/bucket/load.csv", csv(tmp_path, hourly()).read_bytes())
    first = open_set("memory://bucket/load.csv", TableConfig(), tmp_path / "cache")
    assert first.lengths.tolist() == [100]
    store.pipe_file("/bucket/load.csv", csv(tmp_path, hourly(120)).read_bytes())
    again = open_set("memory://bucket/load.csv", TableConfig(), tmp_path / "cache")
    assert again.lengths.tolist() == [120]


def test_what_has_not_changed_is_not_copied_again(
    tmp_path: Path, store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pipe_file("/bucket/load.csv", csv(tmp_path, hourly()).read_bytes())
    open_set("memory://bucket/load.csv", TableConfig(), tmp_path / "cache")
    monkeypatch.setattr(type(store), "get_file", None)
    open_set("memory://bucket/load.csv", TableConfig(), tmp_path / "cache")


def test_a_set_in_an_object_store(tmp_path: Path, store: fsspec.AbstractFileSystem) -> None:
    made = prepared(tmp_path, csv(tmp_path, hourly()))
    store.put(str(made.folder), "/bucket/corpus", recursive=True)
    assert open_set("memory://bucket/corpus", TableConfig(), tmp_path / "c").digest == made.digest


def test_a_folder_and_a_pattern_in_an_object_store(
    tmp_path: Path, store: fsspec.AbstractFileSystem
) -> None:
    for name in ("berlin", "paris"):
        frame = hourly(50 if name == "paris" else 60)
        store.pipe_file(f"/bucket/{name}.csv", csv(tmp_path, frame).read_bytes())
    for url in ("memory://bucket", "memory://bucket/*.csv"):
        series = prepared(tmp_path, url, id_column="file")
        assert [series.item_id(n) for n in range(2)] == ["berlin", "paris"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/gone.csv", "there is nothing at memory://bucket/gone.csv"),
        ("nosuch://bucket/a.csv", "cannot open nosuch://bucket/a.csv"),
    ],
)
def test_what_cannot_be_had(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_set(url, TableConfig(), tmp_path / "cache")


def test_a_file_on_a_server(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="https wants the package aiohttp")
    csv(tmp_path, hourly())
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/table.csv"
        assert prepared(tmp_path, url).lengths.tolist() == [100]
        with pytest.raises(UserError, match="there is nothing at http"):
            prepared(tmp_path, url.replace("table", "gone"))
        server.shutdown()
