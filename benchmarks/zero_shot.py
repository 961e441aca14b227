"""A model that is trained on other series forecasts M4 hourly, which it has never seen.

    FORESCALE_TEST_DATA=FOLDER .venv/bin/python -m benchmarks.zero_shot [CONFIG] [KEY=VALUE]...

FOLDER has corpus.parquet (a row for each series: source, item_id, freq, target) and M4's
Hourly-train.csv.gz and Hourly-test.csv.gz. The sources of the corpus whose names begin with m4 are
left out of training, and one in twenty of the others. Scores are M4's: the last 48 points of each
series, one window each, MASE with season 24; recipes are chosen by those of the series of the
corpus that are left out. The model is the one after the last step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.timing import ROOT, print_header, print_table

CONFIG = ROOT / "configs" / "pretrain_small.yaml"

HELD_OUT = 0.05
"""Share of the corpus' series by whose scores recipes are chosen."""

FILES = ("corpus.parquet", "Hourly-train.csv.gz", "Hourly-test.csv.gz")


def forescale(*arguments: str) -> str:
    """Run the command line, and return what it prints on standard output."""
    command = [sys.executable, "-m", "launch", *arguments]
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


def corpus(data: Path, folder: Path) -> Path:
    """Prepare the corpus without M4 as a set, unless it is there; return its folder."""
    out = folder / "corpus-without-m4"
    if not out.exists():
        table = pq.read_table(data / "corpus.parquet")
        table = table.filter(pc.invert(pc.starts_with(table["source"], "m4")))
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "corpus-without-m4.parquet")
        forescale("prepare", str(folder / "corpus-without-m4.parquet"), str(out))
    return out


def m4_hourly(data: Path, folder: Path) -> Path:
    """Prepare M4 hourly with its test points at the end; return the set's folder."""
    out = folder / "m4-hourly"
    if not out.exists():
        train, test = data / "Hourly-train.csv.gz", data / "Hourly-test.csv.gz"
        forescale("prepare", str(train), str(out), "--then", str(test), "data.freq=h")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", nargs="?", default=str(CONFIG))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, default=os.environ.get("FORESCALE_TEST_DATA"))
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "zero_shot")
    parser.add_argument("--synthetic", type=float, default=0.5, help="share that is made")
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder of the data by --data or FORESCALE_TEST_DATA")
    for name in FILES:
        if not (Path(options.data) / name).is_file():
            parser.error(f"{options.data} has no {name}; {__doc__.split(chr(10) * 2)[2]}")
    sets = ROOT / "runs" / ".zero_shot"
    real, made = 1 - options.synthetic, options.synthetic / 2
    sources = [
        {"path": str(corpus(Path(options.data), sets)), "weight": real},
        *(
            {"synthetic": {"kind": kind, "items": 1_000_000, "length": 1024}, "weight": made}
            for kind in ("gaussian_process", "structured")
        ),
    ]
    mixture = json.dumps([source for source in sources if source["weight"]])
    began = time.perf_counter()
    settings = [f"data.source={mixture}", f"data.held_out={HELD_OUT}", *options.overrides]
    forescale("train", options.config, *settings, "--run-dir", str(options.run))
    minutes = (time.perf_counter() - began) / 60
    print_header("Zero-shot on M4 hourly")
    print(f"trained for {minutes:.1f} minutes: {options.config} {' '.join(options.overrides)}\n")
    target = str(m4_hourly(Path(options.data), sets))
    changes = [f"data.source={target}", "data.split_last=[0,48]", "data.prediction_length=48"]
    changes += ["data.season_lengths=[24]", "data.min_prediction_length=null", "data.held_out=0"]
    print_scores("Series of the corpus that are left out", options.run, "--split", "held_out")
    print_scores("M4 hourly", options.run, *changes)


def print_scores(title: str, run: Path, *arguments: str) -> None:
    """Print the scores of a run on some series."""
    scores = json.loads(forescale("evaluate", str(run), *arguments, "--json"))
    rows = [
        [name, *(f"{of_name[key]:.4f}" for key in ("mase", "wql"))]
        for name, of_name in scores["scores"].items()
    ]
    print(f"\n{title}, {scores['windows']:,} windows")
    print_table(["forecast", "MASE", "WQL"], rows)
    print(f"{scores['interval']['covered']:.1%} of the points lie in the 80 % interval")


if __name__ == "__main__":
    main()
