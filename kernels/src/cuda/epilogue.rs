//! What a product does to its numbers before they are stored, as the kernels take it: the arguments of `epilogue.cu`.

use super::activation;
use super::launch::{Args, Work};
use super::memory::{Buffer, Pointer};
use super::{input, size32};
use crate::device::{Activation, Format};
use crate::error::Result;
use crate::fused::Epilogue;

/// As in `prelude.cuh`.
const TRANSPOSE_SIDE: u32 = 64;

/// An epilogue whose lengths are checked.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    bias: Pointer,
    low: Pointer,
    side: Pointer,
    up: Pointer,
    rank: u32,
    scale: f32,
    /// 0 for none, else one more than the activation's number.
    kind: u32,
    transpose_side: bool,
}

impl Terms {
    /// Nothing is done.
    pub const NONE: Self = Self {
        bias: Pointer::NULL,
        low: Pointer::NULL,
        side: Pointer::NULL,
        up: Pointer::NULL,
        rank: 0,
        scale: 0.0,
        kind: 0,
        transpose_side: false,
    };

    /// The epilogue of a product `[m, n]`, of row-dot form or not.
    pub fn new(operation: &'static str, epilogue: Epilogue<'_, Buffer>, m: usize, n: usize, row_dot: bool) -> Result<Self> {
        let mut terms = Self { transpose_side: row_dot, ..Self::NONE };
        if let Some(bias) = epilogue.bias {
            terms.bias = input(operation, "bias", bias, &[n])?;
        }
        if let Some(low_rank) = epilogue.low_rank {
            terms.low = input(operation, "low", low_rank.low, &[m, low_rank.rank])?;
            terms.side = input(operation, "side", low_rank.side, &[n, low_rank.rank])?;
            (terms.rank, terms.scale) = (size32(operation, "rank", low_rank.rank)?, low_rank.scale);
        }
        Ok(terms)
    }

    /// The same, and then `activation(y)`, or `activation(y) · up`.
    pub fn activated(self, kind: Activation, up: Option<Pointer>) -> Self {
        Self { kind: activation::number(kind) + 1, up: up.unwrap_or(Pointer::NULL), ..self }
    }

    /// The bias, or null.
    pub fn bias(&self) -> Pointer {
        self.bias
    }

    /// The same with another bias.
    pub fn with_bias(self, bias: Pointer) -> Self {
        Self { bias, ..self }
    }

    /// Whether nothing is done.
    pub fn is_none(&self) -> bool {
        self.rank == 0 && self.kind == 0 && self.bias == Pointer::NULL
    }

    /// Where the terms are: the arguments behind the matrices. Products without an activation have no `up`.
    pub fn pointers(&self, args: Args, activates: bool) -> Args {
        let args = args.pointer(self.bias).pointer(self.low).pointer(self.side);
        if activates { args.pointer(self.up) } else { args }
    }

    /// The numbers that follow the flags.
    pub fn numbers(&self, args: Args, activates: bool) -> Args {
        let args = args.u32(self.rank).f32(self.scale);
        if activates { args.u32(self.kind) } else { args }
    }

    /// The bit of the flags.
    pub fn flags(&self) -> u32 {
        if self.transpose_side { TRANSPOSE_SIDE } else { 0 }
    }

    /// What it adds to the work of a product `[m, n]`.
    pub fn work(&self, m: usize, n: usize) -> Work {
        if self.is_none() {
            return Work { bytes: 0, flops: 0 };
        }
        let (m, n, rank) = (m as u64, n as u64, u64::from(self.rank));
        let numbers = m.saturating_mul(n);
        let when = |set: bool, count: u64| if set { count } else { 0 };
        let (has_bias, has_up) = (self.bias != Pointer::NULL, self.up != Pointer::NULL);
        let read = rank.saturating_mul(m.saturating_add(n)).saturating_add(when(has_bias, n)).saturating_add(when(has_up, numbers));
        let each = 2 * rank + when(has_bias, 1) + when(has_up, 1) + when(self.kind != 0, activation::FLOPS as u64);
        Work { bytes: read.saturating_mul(4), flops: numbers.saturating_mul(each) }
    }
}

/// Whether row-dot products of a weight in this format have an epilogue in their kernels: all of the forward pass.
pub(super) fn is_fused_by_rows(format: Format) -> bool {
    !matches!(format, Format::Q8Units | Format::Q4Units)
}

/// Whether unit-row products have one.
pub(super) fn is_fused_by_units(format: Format) -> bool {
    !matches!(format, Format::Q8 | Format::Q4)
}
