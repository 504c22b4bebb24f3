"""Compares what is committed in tests/data/foreign with PyTorch and transformers: check_foreign.py FOLDER MODELS [DATA] [--train].

The CNN, with the weights of its graph, runs in PyTorch on the made windows and, where DATA is given, on every holdout and test window of
uestc-speed:1000; MiniLM runs in transformers and sentence-transformers. All must be what the tests of Espalier compare with. The graph of MiniLM is exported anew, and
onnx's checker and ONNX Runtime's own Python run both graphs. With --train all is made anew instead, the CNN trained. Exits 1 where anything
differs.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import sentence_transformers
import torch
import transformers
from safetensors.torch import load_file

import foreign_cnn
import foreign_encoder
import foreign_tiny

TOLERANCE = 1e-4
COSINE = 0.9999


class Report:
    """Lines, and whether all is well."""

    def __init__(self):
        self.wrong = 0

    def say(self, line, fine):
        print(line if fine else f"WRONG: {line}", flush=True)
        self.wrong += not fine


def off(found, expected):
    return float("inf") if found.shape != expected.shape else float((found - expected).abs().max())


def session(path):
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_cnn(folder, data, report):
    net = foreign_cnn.load(folder / "cnn.onnx")
    made, recorded = foreign_cnn.expected(net, data)
    committed = load_file(folder / "cnn.safetensors")
    inputs = torch.cat([foreign_cnn.windows(window, foreign_cnn.WINDOW) for window in committed["windows"].numpy()])
    in_runtime = torch.from_numpy(session(folder / "cnn.onnx").run(None, {"signal": inputs.numpy()})[0])
    for name, found in [("PyTorch", made["logits"]), ("ONNX Runtime's Python", in_runtime)]:
        difference = off(found, committed["logits"])
        report.say(f"CNN, {len(inputs)} made windows, {name}: logits off by {difference:.1e}", difference <= TOLERANCE)
    known = load_file(folder / "cnn-uestc.safetensors")
    for name in [name.removesuffix(".logits") for name in recorded if name.endswith(".logits")]:
        found, labels = recorded[f"{name}.logits"], recorded[f"{name}.labels"]
        difference = off(found, known[f"{name}.logits"])
        same = torch.equal(labels, known[f"{name}.labels"])
        right = found.argmax(1) == labels
        classes = [f"{label} {right[labels == index].double().mean():.3f}" for index, label in enumerate(foreign_cnn.CLASSES.values())]
        accuracy = f"accuracy {right.double().mean():.4f} ({', '.join(classes)})"
        report.say(f"CNN, uestc-speed:1000, {name}, {len(labels)} windows: {accuracy}, logits off by {difference:.1e}", same and difference <= TOLERANCE)


def check_encoder(folder, models, report):
    found, committed = foreign_encoder.embeddings(models), load_file(folder / "minilm.safetensors")["embeddings"]
    sentences = (folder / "minilm.txt").read_text().splitlines()
    report.say(f"MiniLM: {len(sentences)} sentences are those of the script", sentences == foreign_encoder.SENTENCES)
    by_itself = foreign_encoder.sentence_transformers_embeddings(models)
    programs = [(f"transformers {transformers.__version__}", found), (f"sentence-transformers {sentence_transformers.__version__}", by_itself)]
    for name, found in programs:
        difference = off(found, committed)
        report.say(f"MiniLM, {name}: embeddings off by {difference:.1e}", difference <= TOLERANCE)
    with tempfile.TemporaryDirectory() as scratch:
        # The weights must lie in the graph's folder, and onnx's checker takes no links.
        shutil.copyfile(models / "model.safetensors", Path(scratch) / "model.safetensors")
        for name, graph in [("committed", folder / "minilm.onnx"), ("exported anew", None)]:
            path = Path(scratch) / "minilm.onnx"
            if graph is None:
                foreign_encoder.export(models, path)
            else:
                path.write_bytes(graph.read_bytes())
            embedded = foreign_encoder.run_graph(session(path), models)
            cosine, difference = float((embedded * committed).sum(1).min()), off(embedded, committed)
            line = f"MiniLM, graph {name}, ONNX Runtime's Python: cosine at least {cosine:.6f}, off by {difference:.1e}"
            report.say(line, cosine >= COSINE and difference <= TOLERANCE)


def main(arguments):
    folder, models, *rest = [argument for argument in arguments if argument != "--train"]
    folder, models, data = Path(folder), Path(models), Path(rest[0]) if rest else None
    torch.set_num_threads(2)
    if "--train" in arguments:
        foreign_tiny.write(folder)
        foreign_cnn.write(folder, data)
        foreign_encoder.write(models, folder)
    report = Report()
    check_cnn(folder, data, report)
    check_encoder(folder, models, report)
    print(f"PyTorch {torch.__version__}, onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}, numpy {np.__version__}")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
