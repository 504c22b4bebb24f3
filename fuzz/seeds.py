"""Makes the seeds of all corpora but artifact's (which `cargo test --lib -- --ignored artifact_seed` makes). Needs Python alone."""

import json
import pathlib
import struct
import zipfile
import zlib

here = pathlib.Path(__file__).parent
corpus, pytorch = here / "corpus", here.parent / "models/tests/pytorch"


def seed(target, name, data):
    path = corpus / target / f"seed-{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


# Checkpoints.
seed("safetensors", "gpt2", (pytorch / "model.safetensors").read_bytes())
seed("config", "gpt2", (pytorch / "config.json").read_bytes())
llama = {"model_type": "llama", "hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 3,
         "num_hidden_layers": 1, "vocab_size": 3, "max_position_embeddings": 8, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
         "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "head_dim": 2}
seed("config", "llama", json.dumps(llama))
for name in ("strided.bin", "training.pth", "protocol_4.bin", "legacy.bin"):
    seed("pytorch", name, (pytorch / name).read_bytes())
for name in ("state_dict.bin", "ordered_with_metadata.pt", "parameters.pt", "protocol_4.bin", "runs.bin", "module.pt"):
    with zipfile.ZipFile(pytorch / name) as archive:
        seed("pickle", name, archive.read(next(file for file in archive.namelist() if file.endswith("data.pkl"))))

# ONNX graphs of other programs, and their sidecars.
foreign = here.parent / "tests/data/foreign"
seed("onnx", "tiny", (foreign / "tiny.onnx").read_bytes())
for name in ("tiny", "cnn", "minilm"):
    seed("sidecar", name, (foreign / f"{name}.onnx.json").read_bytes())

# GGUF v3: key-value pairs, tensor infos, aligned data; a llama of width 4.
def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(pairs, tensors):
    kinds = {int: (4, "<I"), float: (6, "<f")}
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    for key, value in pairs.items():
        out += text(key)
        if isinstance(value, str):
            out += struct.pack("<I", 8) + text(value)
        elif isinstance(value, list):
            kind = 8 if isinstance(value[0], str) else 5 if isinstance(value[0], int) else 6
            pack = {8: text, 5: lambda item: struct.pack("<i", item), 6: lambda item: struct.pack("<f", item)}[kind]
            out += struct.pack("<IIQ", 9, kind, len(value)) + b"".join(map(pack, value))
        else:
            kind, form = kinds[type(value)]
            out += struct.pack("<I", kind) + struct.pack(form, value)
    at, data = 0, b""
    for name, shape in tensors.items():
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", 0, at)
        count = 1
        for size in shape:
            count *= size
        data += struct.pack(f"<{count}f", *[0.25] * count) + bytes(-4 * count % 32)
        at = len(data)
    return out + bytes(-len(out) % 32) + data


pairs = {"general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 8, "llama.embedding_length": 4,
         "llama.feed_forward_length": 3, "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1, "llama.vocab_size": 3,
         "llama.rope.dimension_count": 2, "llama.rope.freq_base": 1e4, "llama.attention.layer_norm_rms_epsilon": 1e-5,
         "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": ["a", "b", "ab"],
         "tokenizer.ggml.token_type": [1, 1, 1], "tokenizer.ggml.merges": ["a b"]}
shapes = {"token_embd.weight": [3, 4], "blk.0.attn_norm.weight": [4], "blk.0.attn_q.weight": [4, 4], "blk.0.attn_k.weight": [2, 4],
          "blk.0.attn_v.weight": [2, 4], "blk.0.attn_output.weight": [4, 4], "blk.0.ffn_norm.weight": [4], "blk.0.ffn_up.weight": [3, 4],
          "blk.0.ffn_gate.weight": [3, 4], "blk.0.ffn_down.weight": [4, 3], "output_norm.weight": [4], "output.weight": [3, 4]}
seed("gguf", "llama", gguf(pairs, shapes))

# MATLAB v5: text header, then elements of type, length, data padded to 8 bytes.
def element(kind, data):
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(name, values):
    numbers = struct.pack(f"<{len(values)}d", *values)
    return element(14, element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack("<ii", len(values), 1))
                   + element(1, name.encode()) + element(9, numbers))


header = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)
arrays = [matrix("X097_DE_time", [0.1, -0.2, 0.3]), matrix("X097RPM", [1797.0])]
seed("mat", "plain", header + b"".join(arrays))
packed = b""
for array in arrays:
    data = zlib.compress(array)
    packed += struct.pack("<II", 15, len(data)) + data
seed("mat", "compressed", header + packed)

# WAV: 16-bit stereo, 32-bit float, 24-bit.
def wav(tag, channels, bits, data):
    form = struct.pack("<HHIIHH", tag, channels, 12000, 12000 * channels * bits // 8, channels * bits // 8, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


seed("wav", "stereo16", wav(1, 2, 16, struct.pack("<8h", *range(-4, 4))))
seed("wav", "float32", wav(3, 1, 32, struct.pack("<4f", 0.5, -0.5, 0.25, 0.0)))
seed("wav", "mono24", wav(1, 1, 24, bytes(range(12))))


def npy(descr, shape, data):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


seed("npy", "f4", npy("<f4", "(4,)", struct.pack("<4f", 1, 2, 3, 4)))
seed("npy", "f8", npy("<f8", "(2, 1)", struct.pack("<2d", 1, 2)))
seed("npy", "i2", npy(">i2", "(3,)", struct.pack(">3h", 1, 2, 3)))

seed("csv", "header", "time,vibration\n0,0.5\n1,-0.25\n2,1e-3\n")
seed("csv", "semicolons", "# a comment\n1;2\n3;4\n\n5;6\n")
seed("csv", "quotes", '"a ""b""",c\n"1",2\n3,"4"\n')

# Tokenizers.
seed("vocabulary", "antibodies", "[PAD]\n[UNK]\nA")
seed("vocabulary", "words", "[UNK]\r\nthe\r\n##s")
added = [{"id": 0, "content": "[UNK]", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}]
common = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
word_piece = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
              "vocab": {"[UNK]": 0, "the": 1, "##s": 2, "e": 3, "v": 4}}
seed("tokenizer", "wordpiece", json.dumps(common | {
    "normalizer": bert, "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None,
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}, "model": word_piece}))
bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
       "byte_fallback": False, "ignore_merges": False, "vocab": {"[UNK]": 0, "t": 1, "h": 2, "e": 3, "th": 4, "the": 5},
       "merges": [["t", "h"], ["th", "e"]]}
split = {"type": "Split", "pattern": {"Regex": "\\p{L}+| ?\\d{1,3}"}, "behavior": "Isolated", "invert": False}
level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[UNK]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[UNK]": {"id": "[UNK]", "ids": [0], "tokens": ["[UNK]"]}}}
seed("tokenizer", "bpe", json.dumps(common | {
    "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "post_processor": template,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, "model": bpe}))
unigram = {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [["<unk>", 0.0], ["\u2581the", -1.5], ["e", -2.0]]}
space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
seed("tokenizer", "unigram", json.dumps(common | {
    "added_tokens": [], "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}, "pre_tokenizer": space,
    "post_processor": None, "decoder": space, "model": unigram}))
