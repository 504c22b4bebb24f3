//! The number formats of GGUF tensors, and how blocks of them become f32.
//!
//! Every function for blocks does in f32 what ggml's reference does, operation by operation, so that the numbers are equal bit for bit. A block of
//! the K formats holds 256 numbers in sub-blocks whose scales are integers times the block's f16 scale; the others hold 32.

use half::f16;

use crate::checkpoint::tensors;
use crate::tensor::DType;

/// The most numbers in a block.
pub(super) const MAX_BLOCK: usize = 256;

/// Decodes one block.
type Decode = fn(&[u8], &mut [f32]);

/// How numbers become f32.
#[derive(Debug, Clone, Copy)]
pub(super) enum Coding {
    /// Each by itself: the artifact's number format that is the same.
    Float(DType),
    /// A block of `bytes` bytes at once, to `numbers` numbers.
    Blocks(Decode),
    /// They are not read.
    Unread,
}

/// A number format: how many numbers a block has in how many bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockType {
    /// Its number in the file.
    pub id: u32,
    /// Its name in ggml.
    pub name: &'static str,
    /// Numbers in a block.
    pub numbers: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// How its numbers become f32.
    pub coding: Coding,
}

/// All formats that ggml has or had in files. Those without a decoder are here so that they are refused by name.
const TYPES: &[BlockType] = &[
    float(0, "F32", 4, DType::F32),
    float(1, "F16", 2, DType::F16),
    blocks(2, "Q4_0", 32, 18, decode_q4_0),
    blocks(3, "Q4_1", 32, 20, decode_q4_1),
    blocks(6, "Q5_0", 32, 22, decode_q5_0),
    blocks(7, "Q5_1", 32, 24, decode_q5_1),
    blocks(8, "Q8_0", 32, 34, decode_q8_0),
    named(9, "Q8_1", 32, 40),
    named(10, "Q2_K", 256, 84),
    named(11, "Q3_K", 256, 110),
    blocks(12, "Q4_K", 256, 144, decode_q4_k),
    blocks(13, "Q5_K", 256, 176, decode_q5_k),
    blocks(14, "Q6_K", 256, 210, decode_q6_k),
    named(15, "Q8_K", 256, 292),
    named(16, "IQ2_XXS", 256, 66),
    named(17, "IQ2_XS", 256, 74),
    named(18, "IQ3_XXS", 256, 98),
    named(19, "IQ1_S", 256, 50),
    named(20, "IQ4_NL", 32, 18),
    named(21, "IQ3_S", 256, 110),
    named(22, "IQ2_S", 256, 82),
    named(23, "IQ4_XS", 256, 136),
    named(24, "I8", 1, 1),
    named(25, "I16", 1, 2),
    named(26, "I32", 1, 4),
    named(27, "I64", 1, 8),
    named(28, "F64", 1, 8),
    named(29, "IQ1_M", 256, 56),
    float(30, "BF16", 2, DType::Bf16),
    named(34, "TQ1_0", 256, 54),
    named(35, "TQ2_0", 256, 66),
    named(39, "MXFP4", 32, 17),
];

const fn float(id: u32, name: &'static str, bytes: usize, dtype: DType) -> BlockType {
    BlockType { id, name, numbers: 1, bytes, coding: Coding::Float(dtype) }
}

const fn blocks(id: u32, name: &'static str, numbers: usize, bytes: usize, decode: Decode) -> BlockType {
    BlockType { id, name, numbers, bytes, coding: Coding::Blocks(decode) }
}

const fn named(id: u32, name: &'static str, numbers: usize, bytes: usize) -> BlockType {
    BlockType { id, name, numbers, bytes, coding: Coding::Unread }
}

impl BlockType {
    /// The format with that number in the file.
    pub fn of(id: u32) -> Option<&'static BlockType> {
        TYPES.iter().find(|found| found.id == id)
    }

    /// The format in which numbers of `dtype` are written.
    pub fn of_dtype(dtype: DType) -> &'static BlockType {
        TYPES.iter().find(|found| matches!(found.coding, Coding::Float(float) if float == dtype)).unwrap_or(&TYPES[0])
    }

    /// Decodes the numbers from `first` on of a tensor whose blocks are `bytes` into `out`: where the first that is not finite is. None
    /// where the format is not read. The caller has checked that the numbers are there.
    pub fn decode_range(&self, bytes: &[u8], first: usize, out: &mut [f32]) -> Option<Option<usize>> {
        match self.coding {
            Coding::Float(dtype) => Some(tensors::decode(dtype, &bytes[first * self.bytes..], out)),
            Coding::Blocks(decode) => {
                self.decode_blocks(decode, bytes, first, out);
                Some(out.iter().position(|value| !value.is_finite()))
            }
            Coding::Unread => None,
        }
    }

    fn decode_blocks(&self, decode: Decode, bytes: &[u8], first: usize, out: &mut [f32]) {
        let (mut next, mut done) = (first, 0);
        let mut part = [0.0; MAX_BLOCK];
        while done < out.len() {
            let (block, within) = (next / self.numbers, next % self.numbers);
            let source = &bytes[block * self.bytes..][..self.bytes];
            let count = (self.numbers - within).min(out.len() - done);
            let target = &mut out[done..done + count];
            if count == self.numbers {
                decode(source, target);
            } else {
                decode(source, &mut part[..self.numbers]);
                target.copy_from_slice(&part[within..within + count]);
            }
            (next, done) = (next + count, done + count);
        }
    }
}

/// The f16 at `at`, as f32.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// f16 scale; 16 bytes, number i in the low half of byte i, number i + 16 in the high half; less 8.
fn decode_q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    for (at, &byte) in block[2..18].iter().enumerate() {
        out[at] = (i32::from(byte & 15) - 8) as f32 * scale;
        out[at + 16] = (i32::from(byte >> 4) - 8) as f32 * scale;
    }
}

/// f16 scale, f16 minimum; 16 bytes as in Q4_0.
fn decode_q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for (at, &byte) in block[4..20].iter().enumerate() {
        out[at] = f32::from(byte & 15) * scale + minimum;
        out[at + 16] = f32::from(byte >> 4) * scale + minimum;
    }
}

/// The 5-bit numbers `at` and `at + 16` of a block whose fifth bits are `high` and low halves `byte`.
fn five_bits(high: u32, byte: u8, at: usize) -> (u8, u8) {
    let bit = |index: usize| ((high >> index & 1) << 4) as u8;
    (byte & 15 | bit(at), byte >> 4 | bit(at + 16))
}

/// f16 scale; 32 fifth bits; 16 bytes as in Q4_0; less 16.
fn decode_q5_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (at, &byte) in block[6..22].iter().enumerate() {
        let (low, up) = five_bits(high, byte, at);
        out[at] = (i32::from(low) - 16) as f32 * scale;
        out[at + 16] = (i32::from(up) - 16) as f32 * scale;
    }
}

/// f16 scale, f16 minimum; 32 fifth bits; 16 bytes as in Q4_0.
fn decode_q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (at, &byte) in block[8..24].iter().enumerate() {
        let (low, up) = five_bits(high, byte, at);
        out[at] = f32::from(low) * scale + minimum;
        out[at + 16] = f32::from(up) * scale + minimum;
    }
}

/// f16 scale; 32 signed bytes.
fn decode_q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    out.iter_mut().zip(&block[2..34]).for_each(|(out, &byte)| *out = f32::from(byte as i8) * scale);
}

/// The 6-bit scale and minimum of sub-block `at` (of 8) in the 12 packed bytes of Q4_K and Q5_K: the first four have their own bytes,
/// the others' low bits are the last four bytes and their high bits the top of the first eight.
fn scale_and_minimum(packed: &[u8], at: usize) -> (u8, u8) {
    if at < 4 {
        (packed[at] & 63, packed[at + 4] & 63)
    } else {
        (packed[at + 4] & 15 | packed[at - 4] >> 6 << 4, packed[at + 4] >> 4 | packed[at] >> 6 << 4)
    }
}

/// f16 scale, f16 scale of minima; 8 packed scales and minima; 128 bytes: each 32 of them hold a sub-block in the low halves and the next
/// in the high halves.
fn decode_q4_k(block: &[u8], out: &mut [f32]) {
    decode_k(block, &[0; 32], &block[16..144], out);
}

/// As Q4_K, with 32 bytes before the 128: bit s of byte i is the fifth bit of number i of sub-block s.
fn decode_q5_k(block: &[u8], out: &mut [f32]) {
    decode_k(block, &block[16..48], &block[48..176], out);
}

fn decode_k(block: &[u8], fifth: &[u8], quants: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for (at, out) in out.chunks_exact_mut(32).enumerate() {
        let (sub_scale, sub_minimum) = scale_and_minimum(&block[4..16], at);
        let (step, start) = (scale * f32::from(sub_scale), minimum * f32::from(sub_minimum));
        let shift = at % 2 * 4;
        for ((out, &byte), &fifth) in out.iter_mut().zip(&quants[at / 2 * 32..]).zip(fifth) {
            let number = byte >> shift & 15 | (fifth >> at & 1) << 4;
            *out = step * f32::from(number) - start;
        }
    }
}

/// 128 bytes of low halves, 64 of high pairs, 16 signed scales, f16 scale. Either half of the block holds four runs of 32 numbers: runs 0
/// and 1 in the low halves of its 64 bytes, 2 and 3 in the high halves; run r has bits 2r and 2r + 1 of its 32 bytes of pairs; less 32.
fn decode_q6_k(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 208);
    for (at, out) in out.chunks_exact_mut(32).enumerate() {
        let (part, run) = (at / 4, at % 4);
        let low = &block[part * 64 + run % 2 * 32..][..32];
        let high = &block[128 + part * 32..][..32];
        for (index, out) in out.iter_mut().enumerate() {
            let number = low[index] >> (run / 2 * 4) & 15 | (high[index] >> (run * 2) & 3) << 4;
            let sub_scale = block[192 + part * 8 + run * 2 + index / 16] as i8;
            *out = scale * f32::from(sub_scale) * (i32::from(number) - 32) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For every format that is read: blocks with random bits and odd scales (subnormal, negative, zero, largest), and what the `gguf`
    /// package makes of them; written by `tests/data/gguf_blocks.py`.
    const FIXTURE: &[u8] = include_bytes!("../../../tests/data/gguf_blocks.bin");

    #[test]
    fn blocks_decode_to_the_bits_of_the_reference() {
        let (mut rest, mut wrong, mut seen) = (FIXTURE, Vec::new(), 0);
        let word = |bytes: &mut &[u8]| {
            let (word, after) = bytes.split_first_chunk::<4>().unwrap();
            *bytes = after;
            u32::from_le_bytes(*word)
        };
        while !rest.is_empty() {
            let (id, blocks) = (word(&mut rest), word(&mut rest) as usize);
            let found = BlockType::of(id).unwrap();
            let (bytes, after) = rest.split_at(blocks * found.bytes);
            let (expected, after) = after.split_at(blocks * found.numbers * 4);
            rest = after;
            seen += 1;
            let expected: Vec<u32> = expected.chunks(4).map(|quad| u32::from_le_bytes(quad.try_into().unwrap())).collect();
            for (first, count) in [(0, expected.len()), (1, 1), (expected.len() / 3, expected.len() / 2), (expected.len() - 1, 1)] {
                let mut out = vec![0.0; count];
                let not_finite = found.decode_range(bytes, first, &mut out).unwrap();
                assert_eq!(not_finite, out.iter().position(|value| !value.is_finite()), "{}", found.name);
                let same = |(out, expected): (&f32, &u32)| out.to_bits() == *expected;
                if let Some(at) = out.iter().zip(&expected[first..]).position(|pair| !same(pair)) {
                    let expected = f32::from_bits(expected[first + at]);
                    wrong.push(format!("{} number {}: {} instead of {expected}", found.name, first + at, out[at]));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(seen, TYPES.iter().filter(|found| !matches!(found.coding, Coding::Unread)).count(), "a format is not in the fixture");
    }
}
