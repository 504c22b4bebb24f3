"""What the models of benches/gpu.sh are made of: recordings to train on, and language models with random weights."""

import array
import json
import math
import random
import wave

RATE_HZ = 12_000
SAMPLES = 24_000


def recordings(folder):
    """Two classes of six recordings: a tone in noise, and the same with a knock a hundred times a second."""
    noise = random.Random(1)
    for name, knock in [("even", 0.0), ("knocking", 1.0)]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(6):
            samples = array.array("h")
            for i in range(SAMPLES):
                since = i % (RATE_HZ // 100)
                x = 0.3 * math.sin(0.1 * i) + 0.1 * noise.gauss(0, 1) + knock * math.exp(-since / 10) * math.sin(1.5 * since)
                samples.append(max(-32768, min(32767, int(12_000 * x))))
            with wave.open(str(folder / name / f"{number}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE_HZ)
                file.writeframes(samples.tobytes())


# hidden size, FFN, layers, heads, KV heads, vocabulary; 1.2 B is the shape of Llama 3.2 1B.
SIZES = {
    "small": (32, 64, 2, 4, 2, 97),
    "0.11 B": (768, 2048, 12, 12, 12, 32_000),
    "1.2 B": (2048, 8192, 16, 32, 8, 128_256),
}

BLOCK_NUMBERS = 1 << 20


def noise_block():
    """2 MiB of bf16 in ±[2^-7, 2^-5): small enough for activations to stay finite, random enough for the power that they cost."""
    source = random.Random(2)
    # Sign, exponent 120 or 121, and seven random bits of fraction.
    return array.array("H", (source.getrandbits(1) << 15 | (120 + source.getrandbits(1)) << 7 | source.getrandbits(7) for _ in range(BLOCK_NUMBERS))).tobytes()


def llama(folder, size):
    """Writes a checkpoint of a Llama of random bf16 weights; its bytes."""
    d, ffn, layers, heads, groups, vocabulary = SIZES[size]
    head_dim = d // heads
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": d, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head_dim,
        "vocab_size": vocabulary, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
        "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tensors = [("model.embed_tokens.weight", [vocabulary, d])]
    for layer in range(layers):
        of = f"model.layers.{layer}."
        tensors += [(of + "input_layernorm.weight", [d]), (of + "post_attention_layernorm.weight", [d])]
        tensors += [(of + f"self_attn.{name}_proj.weight", [width * head_dim, d]) for name, width in [("q", heads), ("k", groups), ("v", groups)]]
        tensors += [(of + "self_attn.o_proj.weight", [d, heads * head_dim])]
        tensors += [(of + f"mlp.{name}_proj.weight", [ffn, d]) for name in ("gate", "up")] + [(of + "mlp.down_proj.weight", [d, ffn])]
    tensors.append(("model.norm.weight", [d]))
    header, at = {}, 0
    for name, shape in tensors:
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = noise_block()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _name, shape in tensors:
            left = 2 * math.prod(shape)
            while left > 0:
                left -= file.write(block[: min(left, len(block))])
    return at
