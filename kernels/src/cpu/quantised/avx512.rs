//! The products with few tokens in AVX-512, which widens quants in the load: what decides how fast a quantised model says its next token.
//!
//! What is here is inlined into code that is compiled for these instructions; a closure would not be.

use std::any::TypeId;
use std::arch::x86_64::*;

use pulp::Simd;
use pulp::x86::V4;

use super::{Eight, Four, Stored};
use crate::format::BLOCK;

/// Registers of sums of interleaved rows, and the columns that they hold: a group is read in four lines of the cache side by side, since
/// groups lie too far apart for the processor to guess what comes next.
const REGISTERS: usize = 4;
pub const COLUMNS: usize = 16 * REGISTERS;

/// Whether code for `S` may call what is here.
#[inline(always)]
pub fn is_compiled_for<S: Simd>() -> bool {
    TypeId::of::<S>() == TypeId::of::<V4>()
}

/// How quants are widened.
pub trait Registers {
    /// The two halves of a block along a row.
    /// # Safety
    /// The machine has AVX-512, and a block can be read at `block`.
    unsafe fn halves(block: *const u8) -> [__m512; 2];
    /// The quants of row `row` of a group, by column.
    /// # Safety
    /// The machine has AVX-512.
    unsafe fn of_group(words: __m512i, row: usize) -> __m512;
}

impl Registers for Eight {
    #[inline(always)]
    unsafe fn halves(block: *const u8) -> [__m512; 2] {
        // SAFETY: the caller's promise: a block has 32 bytes.
        unsafe {
            let (low, high) = (_mm_loadu_si128(block.cast()), _mm_loadu_si128(block.add(16).cast()));
            [_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low)), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high))]
        }
    }
    #[inline(always)]
    unsafe fn of_group(words: __m512i, row: usize) -> __m512 {
        // SAFETY: the caller's promise. The byte is shifted to the top, and down with its sign.
        unsafe {
            let top = _mm512_sllv_epi32(words, _mm512_set1_epi32(24 - 8 * row as i32));
            _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top))
        }
    }
}

impl Registers for Four {
    #[inline(always)]
    unsafe fn halves(block: *const u8) -> [__m512; 2] {
        // SAFETY: the caller's promise: a block has 16 bytes.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(block.cast()));
            let low = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
            [_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes))]
        }
    }
    #[inline(always)]
    unsafe fn of_group(words: __m512i, row: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let shifted = _mm512_srlv_epi32(words, _mm512_set1_epi32(4 * row as i32));
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(15)))
        }
    }
}

/// `Σ scale · (q · x)` over the blocks of a row.
///
/// # Safety
/// The machine has AVX-512.
#[inline(always)]
pub unsafe fn row_dot<Q: super::Quants>(quants: &[u8], scales: &[f32], x: &[f32]) -> f32 {
    let blocks = scales.len();
    assert!(quants.len() == blocks * Q::BLOCK_BYTES && x.len() == blocks * BLOCK);
    // SAFETY: block `block` is below `blocks`, for which the lengths were checked.
    unsafe {
        // Two sums, so that one addition need not wait for the one before.
        let (mut even, mut odd) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        let (mut quants, mut scales, mut x) = (quants.as_ptr(), scales.as_ptr(), x.as_ptr());
        for _ in 0..blocks / 2 {
            even = add_block::<Q>(even, quants, *scales, x);
            odd = add_block::<Q>(odd, quants.add(Q::BLOCK_BYTES), *scales.add(1), x.add(BLOCK));
            (quants, scales, x) = (quants.add(2 * Q::BLOCK_BYTES), scales.add(2), x.add(2 * BLOCK));
        }
        if blocks % 2 == 1 {
            even = add_block::<Q>(even, quants, *scales, x);
        }
        _mm512_reduce_add_ps(_mm512_add_ps(even, odd))
    }
}

/// `sums + scale · (q · x)` of one block.
///
/// # Safety
/// The machine has AVX-512, and a block can be read at `quants` and `x`.
#[inline(always)]
unsafe fn add_block<Q: super::Quants>(sums: __m512, quants: *const u8, scale: f32, x: *const f32) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let [low, high] = Q::halves(quants);
        let product = _mm512_fmadd_ps(high, _mm512_loadu_ps(x.add(BLOCK / 2)), _mm512_mul_ps(low, _mm512_loadu_ps(x)));
        _mm512_fmadd_ps(_mm512_set1_ps(scale), product, sums)
    }
}

/// `y += Σ factors[r] · W[r]` over the first `rows` rows of the block of rows `block`, [`COLUMNS`] columns from `first` on.
///
/// # Safety
/// The machine has AVX-512.
#[allow(clippy::needless_range_loop, reason = "loops whose ends the compiler knows are unrolled, and their shifts become constants")]
#[inline(always)]
pub unsafe fn unit_block<Q: super::Quants>(
    w: &Stored<Q>,
    y: &mut [f32; COLUMNS],
    block: usize,
    first: usize,
    rows: usize,
    factors: &[f32; BLOCK],
    total: f32,
) {
    // SAFETY: every plane is asked for the columns that are read, 16 a register.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); REGISTERS];
        for (group, factors) in factors[..rows.next_multiple_of(Q::GROUP)].chunks_exact(Q::GROUP).enumerate() {
            let at = ((block * (BLOCK / Q::GROUP) + group) * w.columns + first) * 4;
            let words = w.quants[at..][..4 * COLUMNS].as_ptr();
            for register in 0..REGISTERS {
                let words = _mm512_loadu_si512(words.add(64 * register).cast());
                for row in 0..Q::GROUP {
                    sums[register] = _mm512_fmadd_ps(_mm512_set1_ps(factors[row]), Q::of_group(words, row), sums[register]);
                }
            }
        }
        let at = block * w.columns + first;
        let scales = w.scales[at..][..COLUMNS].as_ptr();
        let minima = if Q::MINIMUM { w.minima[at..][..COLUMNS].as_ptr() } else { scales };
        for register in 0..REGISTERS {
            let (at, y) = (16 * register, y.as_mut_ptr().add(16 * register));
            let scale = _mm512_cvtph_ps(scales.add(at).cast::<__m256i>().read_unaligned());
            let mut result = _mm512_fmadd_ps(scale, sums[register], _mm512_loadu_ps(y));
            if Q::MINIMUM {
                let minimum = _mm512_cvtph_ps(minima.add(at).cast::<__m256i>().read_unaligned());
                result = _mm512_fmadd_ps(minimum, _mm512_set1_ps(total), result);
            }
            _mm512_storeu_ps(y, result);
        }
    }
}
