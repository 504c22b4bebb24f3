"""Makes the checkpoints of this folder with PyTorch: one GPT-2 of two dimensions, saved in every way that people do.

    pip install torch safetensors && python3 make.py
"""

import json
import os
import pathlib

import torch
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
config = {
    "model_type": "gpt2", "n_embd": 2, "n_head": 1, "n_layer": 1, "n_positions": 3, "n_inner": 2, "vocab_size": 3,
    "tie_word_embeddings": True,
}
layer = {
    "ln_1.weight": [2], "ln_1.bias": [2], "attn.c_attn.weight": [2, 6], "attn.c_attn.bias": [6], "attn.c_proj.weight": [2, 2],
    "attn.c_proj.bias": [2], "ln_2.weight": [2], "ln_2.bias": [2], "mlp.c_fc.weight": [2, 2], "mlp.c_fc.bias": [2],
    "mlp.c_proj.weight": [2, 2], "mlp.c_proj.bias": [2],
}
shapes = {f"transformer.h.0.{name}": shape for name, shape in layer.items()}
shapes |= {"transformer.wte.weight": [3, 2], "transformer.wpe.weight": [3, 2], "transformer.ln_f.weight": [2], "transformer.ln_f.bias": [2]}

# Numbers that f16 and bf16 hold exactly, different in every tensor.
state, start = {}, 0
for name, shape in shapes.items():
    count = torch.Size(shape).numel()
    state[name] = (torch.arange(start, start + count, dtype=torch.float32) / 4 - 3).reshape(shape)
    start += count


def save(name, value, **options):
    path = here / name
    path.parent.mkdir(exist_ok=True)
    torch.save(value, path, **options)


def strided(tensor):
    """The same numbers, of which the neighbours lie apart: every second number of every second row of a larger tensor, transposed."""
    if tensor.dim() == 1:
        large = torch.full([2 * len(tensor) + 1], 99.0)
        large[1::2] = tensor
        return large[1::2]
    large = torch.full([2 * tensor.shape[1], 2 * tensor.shape[0] + 1], 99.0)
    large[::2, 1::2] = tensor.T
    return large[::2, 1::2].T


def in_one_storage():
    """All tensors as views of one storage."""
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    views, at = {}, 0
    for name, tensor in state.items():
        views[name] = flat[at:at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()
    return views


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


class Runs:
    """What a hostile file does when it is unpickled."""

    def __reduce__(self):
        return os.system, ("echo this must never run",)


(here / "config.json").write_text(json.dumps(config) + "\n")
save_file(state, here / "model.safetensors")
save("state_dict.bin", state)
module = torch.nn.Module()
module.weight = torch.nn.Parameter(torch.zeros(1))
ordered = module.state_dict()
ordered.clear()
ordered.update(state)
save("ordered_with_metadata.pt", ordered)
save("half.bin", {name: tensor.half() for name, tensor in state.items()})
save("bfloat16.bin", {name: tensor.bfloat16() for name, tensor in state.items()})
save("parameters.pt", {name: torch.nn.Parameter(tensor) for name, tensor in state.items()})
save("training.pth", {"epoch": 3, "loss": 0.5, "size": torch.Size([2, 3]), "dtype": torch.float32, "state_dict": state,
                      "optimizer": {"param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}], "state": {0: {"step": torch.tensor(7.0)}}}})
save("model.pth", {"model": state, "done": True, "name": None, "large": 2**40})
save("strided.bin", {name: strided(tensor) for name, tensor in state.items()})
save("one_storage.bin", in_one_storage())
masks = {"transformer.h.0.attn.bias": torch.ones([1, 1, 3, 3], dtype=torch.uint8).tril(),
         "transformer.h.0.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": state["transformer.wte.weight"]}
save("old_names.bin", state | masks)
save("without_prefix.bin", {name.removeprefix("transformer."): tensor for name, tensor in state.items()})
for protocol in (3, 4, 5):
    save(f"protocol_{protocol}.bin", state, pickle_protocol=protocol)

names = list(state)
for number, part in enumerate((names[:5], names[5:]), 1):
    save(f"sharded/pytorch_model-0000{number}-of-00002.bin", {name: state[name] for name in part})
weight_map = {name: f"pytorch_model-0000{1 if name in names[:5] else 2}-of-00002.bin" for name in names}
(here / "sharded/pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}) + "\n")
(here / "sharded/config.json").write_text(json.dumps(config) + "\n")

save("legacy.bin", {"weight": torch.zeros(1)}, _use_new_zipfile_serialization=False)
save("module.pt", Module())
save("runs.bin", {"weight": torch.zeros(1), "more": Runs()})
save("double.bin", {name: tensor.double() for name, tensor in state.items()})
save("repeated.bin", state | {"transformer.wpe.weight": torch.zeros(1, 1).expand(3, 2)})
save("not_finite.bin", state | {"transformer.ln_f.bias": torch.tensor([0.0, float("nan")])})
save("no_tensor.bin", state | {"transformer.h.0.attn.scale": 0.5})
save("list.bin", [torch.zeros(1)])
torch.jit.script(torch.nn.Linear(1, 1)).save(str(here / "torchscript.pt"))
