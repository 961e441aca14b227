"""Sets are read by the libraries whose columns they have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.peers import answer
from tests.trainer.data.sets import csv, hourly, prepared

READERS = {
    "datasets": """
from datasets import load_dataset
rows = load_dataset("arrow", data_files=shard, split="train", cache_dir=cache)
""",
    "gluonts": """
from gluonts.dataset.arrow import ArrowFile
rows = ArrowFile(shard)
""",
}

SCRIPT = """
import json, sys
import numpy as np
shard, cache = sys.argv[1:]
{read}
def plain(value):
    return np.asarray(value).tolist() if not isinstance(value, str) else value
names = ("item_id", "freq", "target", "feat_dynamic_real")
found = [{{name: plain(row[name]) for name in names}} | {{"start": str(row["start"])[:19]}}
         for row in rows]
print(json.dumps(found))
"""


@pytest.mark.parametrize("library", READERS)
def test_a_library_reads_a_set(library: str, tmp_path: Path) -> None:
    frames = [
        hourly(50 + n, start=f"2024-01-0{n + 1}").assign(store=f"s{n}", price=np.arange(50.0 + n))
        for n in range(3)
    ]
    table = pd.concat(frames)
    made = prepared(
        tmp_path, csv(tmp_path, table), id_column="store", targets=["load"], covariates=["price"]
    )
    shard = next(made.folder.glob("shard-*.arrow"))
    script = SCRIPT.format(read=READERS[library])
    rows = answer(script, shard, tmp_path / "cache")
    assert [row["item_id"] for row in rows] == ["s0", "s1", "s2"]
    for n, (row, frame) in enumerate(zip(rows, frames, strict=True)):
        assert row["freq"] == "h" and row["start"].replace("T", " ") == f"2024-01-0{n + 1} 00:00:00"
        np.testing.assert_allclose(np.ravel(row["target"]), frame["load"], rtol=1e-6)
        np.testing.assert_allclose(np.ravel(row["feat_dynamic_real"]), frame["price"], rtol=1e-6)
