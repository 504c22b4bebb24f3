"""Runs the graphs under target/onnx-exports in ONNX Runtime and compares what they compute with what Espalier computed.

Run by check-onnx.sh. Every graph is first checked by onnx's own checker, shapes included. A line a model: the largest difference of a logit
with the weights in the artifact, with the weights in the graph and with a cache (the sequence read in two parts), against Espalier and,
of a dense fixture, against PyTorch; and how many of 16 greedy tokens, decoded with the cache and without it, are alike. Exits 1 where
anything differs.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file

TOLERANCE = 1e-4


def session(path):
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Cached:
    """A graph that carries keys and values, and those that it carries."""

    def __init__(self, session, batch):
        self.session = session
        self.outputs = [output.name for output in session.get_outputs()]
        carried = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
        self.past = {value.name: np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32) for value in carried}

    def read(self, ids):
        found = dict(zip(self.outputs, self.session.run(None, {"input_ids": ids, **self.past})))
        self.past = {name: found[name.replace("past_key_values", "present")] for name in self.past}
        return found["logits"]


def off(found, expected):
    """The largest difference, infinite where shapes differ or a number is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max())


def alike(tokens, expected):
    """How many tokens from the start are the same."""
    return next((index for index, (a, b) in enumerate(zip(tokens, expected)) if a != b), len(expected))


def check_language(folder, plain, expected, fixture):
    ids, logits = expected["input_ids"], expected["logits"]
    graph = session(folder / "cached.onnx")
    cached, cut = Cached(graph, len(ids)), ids.shape[1] // 2
    parts = np.concatenate([cached.read(ids[:, :cut]), cached.read(ids[:, cut:])], axis=1)
    differences = {"cached": off(parts, logits)}
    if fixture is not None:
        found = plain.run(None, {"input_ids": fixture["input_ids"]})[0]
        differences["PyTorch"] = off(found, fixture["logits"])
    wanted = expected["greedy"].tolist()
    one, with_cache, text, without = expected["prompt"][None], [], expected["prompt"].tolist(), []
    cached = Cached(graph, 1)
    for _ in wanted:
        with_cache.append(int(cached.read(one)[0, -1].argmax()))
        one = np.array([[with_cache[-1]]])
        without.append(int(plain.run(None, {"input_ids": np.array([text])})[0][0, -1].argmax()))
        text.append(without[-1])
    return differences, min(alike(with_cache, wanted), alike(without, wanted)), len(wanted)


def check(folder, fixtures):
    """A line of the table, and whether all is well."""
    expected = load_file(folder / "expected.safetensors")
    name = "input_ids" if "input_ids" in expected else "patches"
    plain, embedded = session(folder / "model.onnx"), session(folder / "embedded.onnx")
    graphs = {"external": plain, "embedded": embedded}
    differences = {kind: off(graph.run(None, {name: expected[name]})[0], expected["logits"]) for kind, graph in graphs.items()}
    tokens = ""
    fine = True
    if name == "input_ids":
        fixture = fixtures / folder.name / "expected.safetensors"
        more, same, wanted = check_language(folder, plain, expected, load_file(fixture) if fixture.is_file() else None)
        differences |= more
        tokens = f", {same} of {wanted} tokens equal"
        fine = same == wanted
    fine = fine and all(difference <= TOLERANCE for difference in differences.values())
    return f"{folder.name:<28}" + ", ".join(f"{kind} {difference:.1e}" for kind, difference in differences.items()) + tokens, fine


def main(exports, fixtures):
    folders = sorted(folder for folder in exports.iterdir() if folder.is_dir())
    wrong = []
    for folder in folders:
        line, fine = check(folder, fixtures)
        print(line, flush=True)
        if not fine:
            wrong.append(folder.name)
    print(f"{len(folders)} models in ONNX Runtime {onnxruntime.__version__}, checked by onnx {onnx.__version__}")
    if wrong:
        print(f"{len(wrong)} differ: {', '.join(wrong)}")
    return 1 if wrong or not folders else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
