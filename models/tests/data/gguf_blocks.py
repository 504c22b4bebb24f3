"""Writes gguf_blocks.bin: random blocks of every GGUF number format that is read, and the numbers that they are.

Needs `pip install gguf==0.19.0 numpy`. Format, little-endian, one record a number format: u32 ggml type, u32 blocks, the blocks, the
numbers as f32 in the order of the tensor.
"""
import pathlib
import struct

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

random = np.random.default_rng(20)
# Where the f16 scales lie in a block.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
# Zero, the smallest subnormal, a subnormal, odd fractions of either sign, the largest.
ODD = np.array([0.0, 6e-8, -5.3e-5, 0.1, -0.3333, 0.000123, 1.0009765, -65504.0, 65504.0], dtype=np.float16)
BLOCKS = 2 * len(ODD)

out = b""
for kind in [T.F32, T.F16, T.BF16, *SCALES]:
    numbers, size = GGML_QUANT_SIZES[kind]
    if kind in SCALES:
        blocks = random.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for at in SCALES[kind]:
            scale = np.concatenate([ODD, (random.standard_normal(len(ODD)) * 0.02).astype(np.float16)])
            random.shuffle(scale)
            blocks[:, at:at + 2] = scale.view(np.uint8).reshape(-1, 2)
    else:
        values = np.concatenate([ODD.astype(np.float32), random.standard_normal(BLOCKS - len(ODD)).astype(np.float32)])
        if kind == T.F16:
            blocks = values.astype(np.float16).view(np.uint8).reshape(-1, 2)
        elif kind == T.BF16:
            blocks = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(-1, 2)
        else:
            blocks = values.view(np.uint8).reshape(-1, 4)
    expected = dequantize(blocks.reshape(-1), kind).astype(np.float32)
    assert expected.size == len(blocks) * numbers and np.isfinite(expected).all(), kind
    out += struct.pack("<II", int(kind), len(blocks)) + blocks.tobytes() + expected.tobytes()
pathlib.Path(__file__).with_name("gguf_blocks.bin").write_bytes(out)
