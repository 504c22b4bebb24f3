//! Widening of 16-bit numbers, in loops that are compiled to vector instructions.

/// A 16-bit number format.
pub trait Half: Copy + Send + Sync + 'static {
    /// The number whose bits are `bits`.
    fn widen(bits: u16) -> f32;
}

/// IEEE 754 binary16.
#[derive(Clone, Copy)]
pub struct F16;
/// The upper half of an f32.
#[derive(Clone, Copy)]
pub struct Bf16;

impl Half for Bf16 {
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }
}

impl Half for F16 {
    /// Exponent and mantissa moved into an f32's place are the number divided by 2¹¹², subnormals included; only infinities and NaNs then
    /// need their exponent raised to all ones.
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
        let all_ones = if magnitude >= 65_536.0 { 0x7f80_0000 } else { 0 };
        f32::from_bits(magnitude.to_bits() | all_ones | u32::from(bits & 0x8000) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_16_bit_number_widens_as_the_half_crate_says() {
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        for bits in 0..=u16::MAX {
            assert!(same(F16::widen(bits), half::f16::from_bits(bits).to_f32()), "f16 {bits:#06x}");
            assert!(same(Bf16::widen(bits), half::bf16::from_bits(bits).to_f32()), "bf16 {bits:#06x}");
        }
    }
}
