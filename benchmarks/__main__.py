"""Measures Forescale beside its peers on a CPU, and writes all tables into one file.

    .venv/bin/python -m benchmarks [--quick] [--out FILE]

Each benchmark runs in a process of its own. Nothing else should run on the machine; it takes about
a quarter of an hour. Peers of Hugging Face are measured where transformers is installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.timing import ROOT

BENCHMARKS = ("encoder", "engine", "moe", "saving", "decoding", "data", "synthetic", "forecasting")

HEAD = """# Measured on a CPU

Written by `make bench`, which measures each table anew. Ratios are of one run; seconds are the
machine's.

"""


def main() -> int:
    """Run all benchmarks; return 1 where one fails, and leave the file as it was."""
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/measured.md")
    arguments = parser.parse_args()
    texts = []
    for name in BENCHMARKS:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += ["--quick"] if arguments.quick else []
        print(f"benchmarks.{name}", file=sys.stderr, flush=True)
        ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if ended.returncode != 0:
            print(f"benchmarks.{name} failed", file=sys.stderr)
            return 1
        print(ended.stdout, flush=True)
        texts.append(ended.stdout.strip())
    arguments.out.write_text(HEAD + "\n\n".join(texts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
