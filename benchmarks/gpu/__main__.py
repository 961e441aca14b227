"""Measures Forescale on one GPU: ceilings first, then ours, its peers, and the ratios.

    python -m benchmarks.gpu [--part NAME ...] [--quick] [--out DIR]

Each part runs in a process of its own, takes under four minutes, and leaves DIR/NAME.json. On a
machine without a GPU, --quick rehearses it on the CPU. Peers of Hugging Face are measured where the
package transformers is installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu.measure import IS_CUDA, Part
from benchmarks.timing import print_header

PARTS = ("ceilings", "attention", "norms", "dense", "steps", "moe", "decoding", "series")


def main() -> int:
    """Run the parts that the command line names; return 1 where one fails."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.gpu", description=__doc__, formatter_class=raw)
    parser.add_argument("--part", action="append", choices=PARTS, help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--profile", action="store_true", help="keep tables of operators, too")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="default: runs/gpu")
    arguments = parser.parse_args()
    if not IS_CUDA and not arguments.quick:
        parser.error("torch sees no CUDA device here; --quick rehearses on the CPU")
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = arguments.part or list(PARTS)
    if len(names) == 1:
        _run(names[0], arguments)
        return 0
    flags = [flag for flag in ("quick", "profile") if getattr(arguments, flag)]
    failed = []
    for name in names:
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", arguments.out]
        ended = subprocess.run([*command, *(f"--{flag}" for flag in flags)], check=False)
        if ended.returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, arguments: argparse.Namespace) -> None:
    print_header(f"GPU: {name}")
    card = torch.cuda.get_device_name() if IS_CUDA else "no card"
    print(f"{card}, torch {torch.__version__}\n", flush=True)
    torch.manual_seed(0)
    part = Part(name, arguments.quick, arguments.profile)
    started = time.perf_counter()
    importlib.import_module(f"benchmarks.gpu.{name}").run(part)
    seconds = time.perf_counter() - started
    record = {
        "card": card,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "seconds": seconds,
        "results": part.results,
    }
    (arguments.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for title, text in part.texts.items():
        slug = "".join(c if c.isalnum() else "-" for c in title)
        (arguments.out / f"{name}.{slug}.txt").write_text(text)
    print(f"{name}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
