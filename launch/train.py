"""`deepspeed launch/train.py CONFIG ...`, `torchrun launch/train.py`: one rank of a run."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a script, `launch/` itself is on the path; the packages lie beside it.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from launch.entry import enter

    enter(["train", *sys.argv[1:]])
