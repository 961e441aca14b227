"""Exports a run to ONNX, runs the graph by onnxruntime, and prints what it forecast as JSON."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from forescale import Forecaster, UserError
from trainer.forecast.graph import export_graph

run, file, inputs = sys.argv[1:]
refused = ""
try:
    export_graph(Forecaster.load(run), Path(file))
except UserError as error:
    print(json.dumps({"refused": str(error)}))
    sys.exit()
session = onnxruntime.InferenceSession(file)
told = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
made = []
with np.load(inputs) as arrays:
    for number in range(len(arrays.files) // 3):
        wanted = {one.name: arrays[f"{one.name} {number}"] for one in session.get_inputs()}
        [forecast] = session.run(["forecast"], wanted)
        made.append({"shape": list(forecast.shape), "values": forecast.ravel().tolist()})
print(json.dumps({"made": made, "told": json.loads(told["forescale"])}))
