"""`python -m launch` and `deepspeed launch train CONFIG ...`: the command line."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a folder, `launch/` itself is on the path; the packages lie beside it.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from launch.entry import enter

    enter()
