"""Scores a run beside models of statsforecast, and prints the scores as JSON."""

import json
import sys
from contextlib import redirect_stdout
from io import StringIO

from launch.cli import main

said = StringIO()
with redirect_stdout(said):
    main(["evaluate", sys.argv[1], "--split", "train", "--statsforecast", sys.argv[2], "--json"])
print(json.dumps(json.loads(said.getvalue())["scores"]))
