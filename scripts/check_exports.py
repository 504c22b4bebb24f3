"""Loads the exports under target/exports in transformers and llama.cpp and compares what they compute with what Espalier computed.

Run by check-exports.sh. A line a model: the checkpoint folder's logits in transformers' Flax classes (largest difference relative to the
largest logit), and how many of 32 greedy tokens llama.cpp takes alike from the GGUF file. Flax has GPT-2, Llama and OPT; the files of
other families are compared with the fixture that they came from, number by number. Exits 1 where anything differs.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import transformers
import xllamacpp
from safetensors.numpy import load_file

TOLERANCE = 1e-4
# Flax's Llama knows neither tied embeddings nor the rotary scaling of Llama 3.
FLAX = {"gpt2", "llama", "opt"}
# Must be loaded by both programs.
PRUNED = {"llama-mha-pruned", "gpt2-pruned"}
# Must be loaded by llama.cpp; Flax's Llama takes every head to be as wide as the model divided by the number of heads.
FEWER_HEADS = {"llama-mha-fewer-heads"}


def flax_can(config):
    if config["model_type"] not in FLAX:
        return False
    if config["model_type"] != "llama":
        return config.get("tie_word_embeddings", True)
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    default_head = config["hidden_size"] // config["num_attention_heads"]
    plain = rope.get("rope_type", "default") == "default" and config.get("head_dim", default_head) == default_head
    return plain and not config.get("tie_word_embeddings", False)


def logits_in_transformers(folder, expected):
    """The largest difference of a logit, relative to the largest."""
    model = transformers.FlaxAutoModelForCausalLM.from_pretrained(folder, from_pt=True)
    found = np.asarray(model(expected["input_ids"]).logits)
    if found.shape != expected["logits"].shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected["logits"]).max() / np.abs(expected["logits"]).max())


def same_file(folder, fixture):
    """Whether two checkpoints have the same tensors, but for the last bit of numbers that are kept with 1 added (Gemma's norms)."""
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, fixture))
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape and np.allclose(ours[name], theirs[name], rtol=0, atol=2e-7) for name in ours
    )


def greedy_in_llama_cpp(path, expected):
    """How many tokens from the start are the same. Each is asked for by itself, so that a model's end token does not end the text."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 128, 1, 0, False
    # As exact as llama.cpp can be: its cache of keys and values is f16 by default.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    ids = expected["prompt"].tolist()
    wanted = expected["greedy"].tolist()
    for count, token in enumerate(wanted):
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 1, "cache_prompt": False}
        request = urllib.request.Request(
            server.listening_address + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)["completion_probabilities"][0]["top_logprobs"][0]["id"]
        if found != token:
            return count
        ids.append(token)
    return len(wanted)


def check(folder, fixtures):
    """A line of the table, and whether all is well."""
    expected = load_file(folder / "expected.safetensors")
    checkpoint = folder / "checkpoint"
    config = json.loads((checkpoint / "config.json").read_text())
    fixture = fixtures / folder.name
    if flax_can(config):
        off = logits_in_transformers(checkpoint, expected)
        first, fine = f"logits off by {off:.1e}", off <= TOLERANCE
    elif folder.name in FEWER_HEADS:
        first, fine = "not in Flax: head size", True
    else:
        fine = fixture.is_dir() and same_file(checkpoint, fixture)
        first = "as the fixture" if fine else "not the fixture's"
    if folder.name in PRUNED and not first.startswith("logits"):
        fine, first = False, "transformers cannot load it"
    gguf = folder / "model.gguf"
    if gguf.exists():
        same = greedy_in_llama_cpp(gguf, expected)
        second = f"{same} of {len(expected['greedy'])} tokens equal"
        fine = fine and same == len(expected["greedy"])
    else:
        second = (folder / "gguf-refused.txt").read_text()
        fine = fine and folder.name not in PRUNED | FEWER_HEADS
    return f"{folder.name:<22}{first:<26}{second}", fine


def main(exports, fixtures):
    transformers.logging.set_verbosity_error()
    folders = sorted(folder for folder in exports.iterdir() if folder.is_dir())
    missing = (PRUNED | FEWER_HEADS) - {folder.name for folder in folders}
    lines, wrong = [], sorted(missing)
    for folder in folders:
        line, fine = check(folder, fixtures)
        lines.append(line)
        if not fine:
            wrong.append(folder.name)
    print(f"{'model':<22}{'safetensors':<26}GGUF in llama.cpp", *lines, sep="\n", flush=True)
    if wrong:
        print(f"{len(wrong)} differ: {', '.join(wrong)}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    # llama.cpp's server threads do not end by themselves.
    os._exit(status)
