//! How the quants of a block lie in bytes.

use crate::format::BLOCK;

/// What an instruction set has of its own for quants; nothing where there is none.
#[cfg(target_arch = "x86_64")]
use super::avx512::Registers;
#[cfg(not(target_arch = "x86_64"))]
pub trait Registers {}
#[cfg(not(target_arch = "x86_64"))]
impl<Q> Registers for Q {}

/// How quants are packed.
pub trait Quants: Registers + Copy + Send + Sync + 'static {
    /// Bytes of a block along a row.
    const BLOCK_BYTES: usize;
    /// Rows that share the 4 bytes of a column where rows are interleaved.
    const GROUP: usize;
    /// Whether a block has a minimum.
    const MINIMUM: bool;
    /// The quants of a block along a row.
    fn block(bytes: &[u8]) -> [f32; BLOCK];
    /// The quants of up to [`CHUNK`] blocks along a row, as [`halves_of`](Quants::halves_of) says.
    fn chunk(bytes: &[u8], numbers: &mut [f32; CHUNK * BLOCK]);
    /// Where [`chunk`](Quants::chunk) writes the two halves of block `block`.
    fn halves_of(block: usize) -> [usize; 2];
    /// The quant of row `row` of the group whose 4 bytes are `word`.
    fn quant_of_group(word: u32, row: usize) -> f32;
}

/// Blocks along a row whose quants are written out at a time: 2 KiB of f32.
pub const CHUNK: usize = 16;

/// Numbers in half a block, the widest register's.
pub const HALF: usize = BLOCK / 2;

/// i8, symmetric.
#[derive(Clone, Copy)]
pub struct Eight;
/// 4 bits above a minimum.
#[derive(Clone, Copy)]
pub struct Four;

impl Quants for Eight {
    const BLOCK_BYTES: usize = BLOCK;
    const GROUP: usize = 4;
    const MINIMUM: bool = false;
    #[inline(always)]
    fn block(bytes: &[u8]) -> [f32; BLOCK] {
        let mut numbers = [0.0; BLOCK];
        for (number, &byte) in numbers.iter_mut().zip(&bytes[..BLOCK]) {
            *number = f32::from(byte as i8);
        }
        numbers
    }
    #[inline(always)]
    fn chunk(bytes: &[u8], numbers: &mut [f32; CHUNK * BLOCK]) {
        for (number, &byte) in numbers.iter_mut().zip(bytes) {
            *number = f32::from(byte as i8);
        }
    }
    #[inline(always)]
    fn halves_of(block: usize) -> [usize; 2] {
        [block * BLOCK, block * BLOCK + HALF]
    }
    #[inline(always)]
    fn quant_of_group(word: u32, row: usize) -> f32 {
        ((word << (24 - 8 * row as u32)) as i32 >> 24) as f32
    }
}

impl Quants for Four {
    const BLOCK_BYTES: usize = BLOCK / 2;
    const GROUP: usize = 8;
    const MINIMUM: bool = true;
    #[inline(always)]
    fn block(bytes: &[u8]) -> [f32; BLOCK] {
        let (mut numbers, bytes) = ([0.0; BLOCK], &bytes[..BLOCK / 2]);
        for i in 0..BLOCK / 2 {
            numbers[i] = f32::from(bytes[i] & 15);
            numbers[i + BLOCK / 2] = f32::from(bytes[i] >> 4);
        }
        numbers
    }
    /// All low halves, then all high ones.
    #[inline(always)]
    fn chunk(bytes: &[u8], numbers: &mut [f32; CHUNK * BLOCK]) {
        let (low, high) = numbers.split_at_mut(CHUNK * HALF);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
            *low = f32::from(byte & 15);
            *high = f32::from(byte >> 4);
        }
    }
    #[inline(always)]
    fn halves_of(block: usize) -> [usize; 2] {
        [block * HALF, (CHUNK + block) * HALF]
    }
    #[inline(always)]
    fn quant_of_group(word: u32, row: usize) -> f32 {
        (word >> (4 * row as u32) & 15) as i32 as f32
    }
}
