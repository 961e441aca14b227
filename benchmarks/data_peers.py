"""Windows a second of other loaders, on the shards of a set; run by benchmarks.data.

    PYTHON benchmarks/data_peers.py SHARD SECONDS

It imports nothing of Forescale, so that PYTHON may be of an environment in which the peers are
installed: they want other versions of pandas. It prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

CONTEXT, HORIZON = 512, 96


def rate(windows: Iterator[Any], seconds: float) -> float:
    """Return how many windows come in a second."""
    next(windows)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(windows)
        count += 1
    return count / (time.perf_counter() - began)


def hugging_face(shard: str) -> Iterator[Any]:
    """Yield random windows of a memory-mapped dataset, as a map-style loader does."""
    from datasets import load_dataset

    cache = tempfile.mkdtemp()  # it writes the shard again, in Arrow's streaming format
    data = load_dataset("arrow", data_files=shard, split="train", cache_dir=cache)
    data = data.with_format("numpy")
    rng = np.random.default_rng(0)
    while True:
        target = data[int(rng.integers(len(data)))]["target"]
        if len(target) > CONTEXT + HORIZON:
            first = int(rng.integers(len(target) - CONTEXT - HORIZON))
            yield target[first : first + CONTEXT + HORIZON].copy()


def gluonts(shard: str) -> Iterator[Any]:
    """Yield windows by GluonTS's training splitter over its own Arrow reader."""
    from gluonts.dataset.arrow import ArrowFile
    from gluonts.itertools import Cyclic
    from gluonts.transform import ExpectedNumInstanceSampler, InstanceSplitter

    def entries() -> Iterator[dict[str, Any]]:
        for entry in ArrowFile(shard):
            yield {**entry, "target": np.asarray(entry["target"])}

    splitter = InstanceSplitter(
        "target",
        "is_pad",
        "start",
        "forecast_start",
        ExpectedNumInstanceSampler(num_instances=1.0, min_past=CONTEXT, min_future=HORIZON),
        past_length=CONTEXT,
        future_length=HORIZON,
    )

    class Entries:
        def __iter__(self) -> Iterator[dict[str, Any]]:
            import pandas as pd

            for entry in entries():
                yield {**entry, "start": pd.Period(entry["start"], "h")}

    yield from splitter(Cyclic(Entries()), is_train=True)


PEERS: dict[str, Callable[[str], Iterator[Any]]] = {
    "Hugging Face datasets": hugging_face,
    "GluonTS ArrowFile + InstanceSplitter": gluonts,
}


def main() -> None:
    """Measure each peer that is installed."""
    shard, seconds = sys.argv[1], float(sys.argv[2])
    rates = {}
    for name, make in PEERS.items():
        try:
            rates[name] = rate(make(shard), seconds)
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
