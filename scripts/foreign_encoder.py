"""The encoder of tests/data/foreign: MiniLM from target/models/minilm, exported and run by PyTorch and transformers.

The graph's weights stay where they are, in model.safetensors beside it, so that the graph is small: its matrices are used as the checkpoint
has them, [outputs, inputs], and turned by the graph.
"""

import json

import numpy as np
import onnx
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import AutoModel, AutoTokenizer

MAX_TOKENS = 256
SENTENCES = [
    "The bearing at the drive end runs hot.",
    "A bearing is overheating near the motor.",
    "Bananas are rich in potassium.",
    "Inner race fault",
    "The outer race of the bearing shows a spall of 0.5 mm at the load zone, and the envelope spectrum has a line at 107.4 Hz.",
    "Vibration",
    "Lubrication was renewed on Tuesday; since then the level at 3 kHz has fallen by 12 dB!",
    "La température du palier est normale.",
    "温度正常",
    "x",
    "No fault was found. No fault was found. No fault was found. No fault was found. No fault was found. No fault was found.",
    "Is the machine safe to run until the next maintenance window, or should it be stopped at once?",
]


class Encoder(torch.nn.Module):
    """What the graph computes: the states of the last layer."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state


def open_model(folder):
    return AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def embeddings(folder):
    """As sentence-transformers does: the mean of the states over the mask, divided by its length."""
    model, tokenizer = open_model(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for sentence in SENTENCES:
        given = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=MAX_TOKENS)
        with torch.no_grad():
            states = model(**given).last_hidden_state
        mask = given["attention_mask"][..., None].float()
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        found.append(torch.nn.functional.normalize(mean, p=2, dim=1)[0])
    return torch.stack(found)


def sentence_transformers_embeddings(folder):
    """What sentence-transformers itself makes, with the modules that its all-MiniLM-L6-v2 has."""
    words = modules.Transformer(folder, max_seq_length=MAX_TOKENS)
    model = SentenceTransformer(modules=[words, modules.Pooling(words.get_embedding_dimension(), "mean"), modules.Normalize()], device="cpu")
    return torch.from_numpy(model.encode(SENTENCES, batch_size=1, show_progress_bar=False))


def run_graph(session, folder):
    """The embeddings that ONNX Runtime's own Python makes with the graph."""
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for sentence in SENTENCES:
        given = tokenizer(sentence, return_tensors="np", truncation=True, max_length=MAX_TOKENS)
        states = torch.from_numpy(session.run(None, {value.name: given[value.name] for value in session.get_inputs()})[0])
        found.append(torch.nn.functional.normalize(states.mean(1), p=2, dim=1)[0])
    return torch.stack(found)


def safetensors_places(path):
    """Where each tensor's bytes are in the file, by what they are."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: (8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1]) for name, entry in header.items()}


def export(folder, path):
    model = open_model(folder)
    batch, sequence = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("sequence", min=1, max=512)
    # Tensors of their own: one that is given twice becomes one input.
    given = (torch.full((2, 7), 5), torch.ones(2, 7, dtype=torch.int64), torch.zeros(2, 7, dtype=torch.int64))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    program = torch.onnx.export(
        Encoder(model).eval(), given, dynamo=True, opset_version=18, input_names=names, output_names=["last_hidden_state"],
        dynamic_shapes=tuple({0: batch, 1: sequence} for _ in names), external_data=False, optimize=False, verbose=False,
    )
    graph = program.model_proto
    places = safetensors_places(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", "np") as file:
        known = {name: file.get_tensor(name) for name in places}
    for tensor in graph.graph.initializer:
        numbers = onnx.numpy_helper.to_array(tensor)
        if numbers.nbytes < 1024:
            continue
        same = [name for name, other in known.items() if other.shape == numbers.shape and np.array_equal(other, numbers)]
        if same:
            start, end = places[same[0]]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in [("location", "model.safetensors"), ("offset", start), ("length", end - start)]:
                tensor.external_data.add(key=key, value=str(value))
    strip(graph)
    onnx.save(graph, path)
    sidecar = {
        "input": {
            "kind": "tokens", "ids": names[0], "mask": names[1], "types": names[2], "tokenizer": "tokenizer.json", "max_tokens": MAX_TOKENS,
        },
        "output": {"kind": "embedding", "name": "last_hidden_state", "pooling": "mean", "normalise": True},
    }
    path.with_name(path.name + ".json").write_text(json.dumps(sidecar, indent=2) + "\n")


def strip(model):
    """What the exporter writes about the source of every node names files of the machine that it ran on."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for part in [*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        del part.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
    del model.graph.value_info[:]


def write(models, folder):
    """Writes the graph, its sidecar and the embeddings into the folder."""
    export(models, folder / "minilm.onnx")
    save_file({"embeddings": embeddings(models)}, folder / "minilm.safetensors")
    (folder / "minilm.txt").write_text("\n".join(SENTENCES) + "\n")
