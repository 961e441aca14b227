"""The format of a set: series in a folder of Arrow IPC files, with an index.

set.json               what the set holds, and the size and sum of each other file
index.arrow            a row for each item: where its values lie, how long it is, its statistics
shard-00000.arrow ...  the items, in the columns that GluonTS, Chronos and HF datasets read
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

from model.errors import UserError
from trainer.files import is_file_name, read_json

VERSION = 1
SET_FILE = "set.json"
INDEX_FILE = "index.arrow"

Values = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Item:
    """One series on a regular grid of time."""

    item_id: str
    start: np.datetime64 | None
    """Time of the first point; None where points are only numbered."""
    freq: str | None
    """Interval between points as an offset of pandas: 30min, h, D, W-SUN, MS, QS, YS."""
    target: Values
    """Channels to forecast [C, T], NaN where missing."""
    known: Values
    """Covariates known in advance [F, T]."""
    past: Values
    """Covariates known up to the present [P, T]."""
    static_numbers: tuple[float, ...] = ()
    static_categories: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """The number of its points, T."""
        return self.target.shape[1]


@dataclass(frozen=True)
class Columns:
    """The names of what each item of a set has, by role."""

    target: tuple[str, ...]
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static_numbers: tuple[str, ...] = ()
    static_categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileSum:
    """A file of a set, as it was written."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    bytes: NonNegativeInt
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class SetInfo:
    """What set.json says."""

    columns: Columns
    dtype: Literal["float32", "float64"]
    timezone: str | None
    """Zone of the series, or None where their times are taken as they stand. Where there is one,
    the starts of series with an interval below a day are UTC; those of others are dates there."""
    items: NonNegativeInt
    points: NonNegativeInt
    """Points of all items, each counted once whatever the number of its channels."""
    index: FileSum
    shards: tuple[FileSum, ...]
    notes: tuple[str, ...] = ()
    """Sentences about what was found in the sources."""
    version: int = VERSION

    def text(self) -> str:
        """Return the contents of set.json."""
        return json.dumps(asdict(self), indent=1) + "\n"


_INFO = TypeAdapter(SetInfo)


def read_info(folder: Path) -> SetInfo:
    """Return what a set's set.json says. Raises UserError where that is no set's."""
    path = folder / SET_FILE
    try:
        content: Any = read_json(path)
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > VERSION:
            raise UserError(
                f"{path} is of version {version} of the format, and this Forescale reads "
                f"{VERSION}; use a newer one, or prepare the set again"
            )
        info = _INFO.validate_json(json.dumps(content))
    except (OSError, ValidationError) as error:
        what = "cannot be read" if isinstance(error, OSError) else "is no description of a set"
        raise UserError(f"{path} {what}; prepare the set again") from None
    except UserError:
        raise
    except ValueError:
        raise UserError(f"{path} is no JSON; prepare the set again") from None
    for file in (info.index, *info.shards):
        if not is_file_name(file.name):
            raise UserError(f"{path} names a file outside of its folder: {file.name!r}")
    return info


def is_set(folder: Path) -> bool:
    """Return whether a folder holds a set."""
    return (folder / SET_FILE).is_file()


def shard_schema(columns: Columns, dtype: str) -> pa.Schema:
    """Return the columns of a shard.

    A set with one channel has a list as its target, as HF datasets and Chronos expect; with several
    it has a list of lists, the channels, as GluonTS does.
    """
    value = pa.float32() if dtype == "float32" else pa.float64()
    values = pa.list_(value)
    fields = [
        ("item_id", pa.string()),
        ("start", pa.timestamp("us")),
        ("freq", pa.string()),
        ("target", values if len(columns.target) == 1 else pa.list_(values)),
    ]
    if columns.known:
        fields.append(("feat_dynamic_real", pa.list_(values)))
    if columns.past:
        fields.append(("past_feat_dynamic_real", pa.list_(values)))
    if columns.static_numbers:
        fields.append(("feat_static_real", pa.list_(pa.float64())))
    if columns.static_categories:
        fields.append(("feat_static_cat", pa.list_(pa.string())))
    return pa.schema(fields)


INDEX_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("start", pa.timestamp("us")),
        ("freq", pa.string()),
        ("length", pa.int64()),
        ("shard", pa.int32()),
        ("target", pa.int64()),
        ("known", pa.int64()),
        ("past", pa.int64()),
        ("present", pa.int64()),
        ("mean", pa.float64()),
        ("deviation", pa.float64()),
        ("minimum", pa.float64()),
        ("maximum", pa.float64()),
    ]
)
"""Columns of the index.

`target`, `known` and `past` are the bytes of the shard before an item's values, which lie channel
after channel; -1 where there are none. `present` counts the values of the target that are not
missing; the statistics are of these.
"""
