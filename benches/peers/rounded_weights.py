"""What 16-bit weights cost a model by themselves, in PyTorch: the logits of every fixture in tests/parity, off by which share of the
largest, where matrices are rounded and all else is f32 (as Espalier stores and computes), and where PyTorch computes in 16 bits as well.

    pip install torch==2.15.0 transformers==5.23.0
    python3 benches/peers/rounded_weights.py

ChatGLM-2 is left out: transformers names its tensors in another way.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2] / "tests/parity"


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def with_rounded_matrices(model, dtype):
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.to(dtype).float()
    return model


@torch.no_grad()
def error(model, expected):
    """As `Report::close` in tests/support/parity.rs."""
    logits = model(input_ids=expected["input_ids"], use_cache=False).logits.float()
    return ((logits - expected["logits"]).abs().max() / expected["logits"].abs().max()).item()


def main():
    torch.set_num_threads(1)
    kinds = [("f16", torch.float16), ("bf16", torch.bfloat16)]
    titles = ["f32"] + [title for name, _ in kinds for title in (f"{name} matrices", f"all {name}")]
    print(f"{'':20}" + "".join(f"{title:>16}" for title in titles))
    folders = sorted(path.parent for path in ROOT.glob("*/expected.safetensors") if path.parent.name != "chatglm")
    for folder in folders:
        expected = load_file(folder / "expected.safetensors")
        errors = [error(load(folder), expected)]
        for _, dtype in kinds:
            errors.append(error(with_rounded_matrices(load(folder), dtype), expected))
            errors.append(error(load(folder).to(dtype), expected))
        print(f"{folder.name:20}" + "".join(f"{found:16.1e}" for found in errors))
    return 0 if folders else f"no fixture in {ROOT}"


if __name__ == "__main__":
    sys.exit(main())
