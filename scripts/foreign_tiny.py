"""Tiny graphs of tests/data/foreign, written by hand: a classifier with a fixed batch that gives probabilities, and one that no program runs."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WINDOW = 8
NORMALISATION = {"fixed": {"mean": 0.5, "deviation": 2.0}}


def weights():
    return (np.arange(WINDOW * 3, dtype=np.float32).reshape(WINDOW, 3) % 7 - 3) / 4


def write(folder):
    for name, operator in [("tiny", "Softmax"), ("unsupported", "NoSuchOperator")]:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node(operator, ["product"], ["probabilities"])]
        ends = [[helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, size])] for end, size in [("x", WINDOW), ("probabilities", 3)]]
        graph = helper.make_graph(nodes, name, *ends, [numpy_helper.from_array(weights(), "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="scripts/foreign_tiny.py")
        path = folder / f"{name}.onnx"
        onnx.save(model, path)
        sidecar = {
            "input": {"kind": "window", "name": "x", "window": WINDOW, "hop": 4, "sample_rate_hz": 100, "normalisation": NORMALISATION},
            "output": {"kind": "probabilities", "name": "probabilities", "classes": ["low", "middle", "high"]},
        }
        path.with_name(path.name + ".json").write_text(json.dumps(sidecar, indent=2) + "\n")
