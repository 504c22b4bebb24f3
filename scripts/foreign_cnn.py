"""The 1-D CNN of tests/data/foreign: trained, exported and run by PyTorch.

The windows are those that `espalier train` and `espalier eval` read for the split uestc-speed:1000 (docs/data.md): part 1 at 1000 rpm trains,
its last fifth after a gap of one window is the holdout, part 2 at the other speeds tests.
"""

import json

import numpy as np
import onnx
import scipy.io
import torch
from safetensors.torch import save_file
from torch import nn

CLASSES = {"N": "N", "B": "B", "I": "IR", "O": "OR"}
WINDOW = 2048
TRAINING_HOP = 512
SAMPLE_RATE_HZ = 20_000
TRAINING_RPM = 1000
TEST_RPM = [800, 1200, 1400]
EPOCHS = 12
BATCH = 32


def network():
    """Windows [batch, 1, 2048] to logits [batch, 4]: 23 000 parameters."""
    layers = []
    for inputs, outputs, kernel, stride in [(1, 16, 64, 8), (16, 32, 5, 1), (32, 48, 5, 1), (48, 48, 3, 1)]:
        layers += [nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(48, len(CLASSES)))


def deployed(net):
    """The network with every batch norm folded into its convolution, which is what is exported: each parameter keeps its name in the graph."""
    layers, parts = [], list(net.eval())
    for index, part in enumerate(parts):
        if isinstance(part, nn.BatchNorm1d):
            continue
        follows = parts[index + 1] if index + 1 < len(parts) else None
        layers.append(nn.utils.fusion.fuse_conv_bn_eval(part, follows) if isinstance(follows, nn.BatchNorm1d) else part)
    return nn.Sequential(*layers).eval()


def empty_deployed():
    return deployed(network())


def load(path):
    """The deployed network with the weights of the ONNX file."""
    net = empty_deployed()
    tensors = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in onnx.load(path).graph.initializer}
    net.load_state_dict({name: tensors[name] for name in net.state_dict()})
    return net.eval()


def recording(folder, letter, rpm, part):
    return scipy.io.loadmat(folder / f"{letter}_{rpm}_{part}.mat")["Data"][:, 0].astype(np.float32)


def windows(samples, hop):
    """Windows [count, 1, 2048], each normalised by itself, in double precision, as Espalier does."""
    cut = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::hop].astype(np.float64)
    cut = (cut - cut.mean(1, keepdims=True)) / cut.std(1, keepdims=True)
    return torch.from_numpy(cut.astype(np.float32))[:, None, :]


def sides(data):
    """Windows and labels by set: train, holdout and one a test speed; recordings in the order of their names."""
    found = {}

    def add(name, class_index, samples, hop):
        cut = windows(samples, hop)
        found.setdefault(name, []).append((cut, torch.full((len(cut),), class_index)))

    folder = data / "uestc" if (data / "uestc").is_dir() else data
    classes = list(CLASSES)
    for letter in sorted(classes):
        index = classes.index(letter)
        samples = recording(folder, letter, TRAINING_RPM, 1)
        holdout = len(samples) - len(samples) // 5
        add("train", index, samples[: holdout - WINDOW], TRAINING_HOP)
        add("holdout", index, samples[holdout:], WINDOW)
        for rpm in TEST_RPM:
            add(f"{rpm}rpm", index, recording(folder, letter, rpm, 2), WINDOW)
    return {name: tuple(torch.cat(column) for column in zip(*parts)) for name, parts in found.items()}


def logits(net, inputs):
    with torch.no_grad():
        return torch.cat([net(part) for part in inputs.split(BATCH)])


def train(data):
    torch.manual_seed(42)
    found = sides(data)
    inputs, labels = found["train"]
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = EPOCHS * (len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        net.train()
        order = torch.randperm(len(inputs))
        total = 0.0
        for batch in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            loss = nn.functional.cross_entropy(net(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        held, wanted = found["holdout"]
        accuracy = (logits(net.eval(), held).argmax(1) == wanted).double().mean().item()
        print(f"epoch {epoch + 1}: loss {total / len(inputs):.4f}, holdout {accuracy:.3f}", flush=True)
    return deployed(net)


def export(net, path):
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.onnx.export(
        net, (torch.zeros(2, 1, WINDOW),), dynamo=True, opset_version=18, input_names=["signal"], output_names=["logits"],
        dynamic_shapes=({0: batch},), external_data=False, verbose=False,
    )
    # What the exporter writes about the source of every node names files of the machine that it ran on.
    model = program.model_proto
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    sidecar = {
        "input": {"kind": "window", "name": "signal", "window": WINDOW, "sample_rate_hz": SAMPLE_RATE_HZ, "normalisation": "window"},
        "output": {"kind": "logits", "name": "logits", "classes": list(CLASSES.values())},
    }
    path.with_name(path.name + ".json").write_text(json.dumps(sidecar, indent=2) + "\n")


def made_windows():
    """Four windows of no recording: tones under noise and impacts at a fault's rate."""
    random = np.random.default_rng(7)
    time = np.arange(WINDOW) / SAMPLE_RATE_HZ
    made = []
    for rate, tone in [(0, 300.0), (57.0, 1900.0), (91.0, 2600.0), (140.0, 3400.0)]:
        signal = np.sin(2 * np.pi * tone / 10 * time) + 0.3 * random.standard_normal(WINDOW)
        for start in np.arange(0, WINDOW, SAMPLE_RATE_HZ / rate) if rate else []:
            after = np.maximum(time - start / SAMPLE_RATE_HZ, 0)
            signal += 3 * (time >= start / SAMPLE_RATE_HZ) * np.exp(-900 * after) * np.sin(2 * np.pi * tone * after)
        made.append(signal.astype(np.float32))
    return np.stack(made)


def expected(net, data):
    """What PyTorch computes: of the made windows, and of every set of the split."""
    made = made_windows()
    inputs = torch.cat([windows(window, WINDOW) for window in made])
    tensors = {"windows": torch.from_numpy(made), "logits": logits(net, inputs)}
    recorded = {}
    if data is not None:
        for name, (inputs, labels) in sides(data).items():
            if name != "train":
                recorded[f"{name}.logits"] = logits(net, inputs)
                recorded[f"{name}.labels"] = labels.to(torch.int32)
    return tensors, recorded


def write(folder, data):
    """Trains, and writes graph, sidecar and what PyTorch computes into the folder."""
    net = train(data)
    export(net, folder / "cnn.onnx")
    tensors, recorded = expected(net, data)
    save_file(tensors, folder / "cnn.safetensors")
    save_file(recorded, folder / "cnn-uestc.safetensors")
