//! Launchers that are not there yet. Whoever adds one takes its module out of here and adds `mod NAME;` to `mod.rs`.

use super::CudaDevice;
use super::memory::{Buffer, Indices};
use super::weight::Weight;
use crate::device::{Activation, AdamW, AttentionShape, NormKind, Product};
use crate::error::{KernelError, Result};

fn absent<T>(operation: &'static str) -> Result<T> {
    Err(KernelError::Device { operation, reason: "its kernel is not built in".to_string(), lost: false })
}

pub mod elementwise {
    use super::*;
    #[allow(clippy::too_many_arguments)]
    pub fn fill(_: &CudaDevice, _: &mut Buffer, _: usize, _: f32) -> Result<()> {
        absent("fill")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn add_bias(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: usize, _: usize) -> Result<()> {
        absent("add_bias")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn bias_backward(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: usize, _: usize) -> Result<()> {
        absent("bias_backward")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn add(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: usize, _: f32) -> Result<()> {
        absent("add")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn scale(_: &CudaDevice, _: &mut Buffer, _: usize, _: f32) -> Result<()> {
        absent("scale")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn gate_columns(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: usize, _: usize) -> Result<()> {
        absent("gate_columns")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn gate_backward(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: &Buffer, _: usize, _: usize) -> Result<()> {
        absent("gate_backward")
    }
}
pub mod products {
    use super::*;
    #[allow(clippy::too_many_arguments)]
    pub fn matmul_rows(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: &Weight, _: usize, _: bool) -> Result<()> {
        absent("matmul_rows")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn matmul_units(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: &Weight, _: usize, _: bool) -> Result<()> {
        absent("matmul_units")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn matmul(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: &Buffer, _: Product) -> Result<()> {
        absent("matmul")
    }
}
pub mod activation {
    use super::*;
    #[allow(clippy::too_many_arguments)]
    pub fn activate(_: &CudaDevice, _: Activation, _: &mut Buffer, _: &Buffer, _: Option<&Buffer>, _: usize) -> Result<()> {
        absent("activate")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn activate_backward(
        _: &CudaDevice,
        _: Activation,
        _: &mut Buffer,
        _: Option<&mut Buffer>,
        _: &Buffer,
        _: &Buffer,
        _: Option<&Buffer>,
        _: usize,
    ) -> Result<()> {
        absent("activate_backward")
    }
}
pub mod norm {
    use super::*;
    #[allow(clippy::too_many_arguments)]
    pub fn norm(_: &CudaDevice, _: NormKind, _: &mut Buffer, _: &Buffer, _: &Buffer, _: Option<&Buffer>, _: f32, _: usize) -> Result<()> {
        absent("norm")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn norm_backward(
        _: &CudaDevice,
        _: NormKind,
        _: &mut Buffer,
        _: Option<&mut Buffer>,
        _: Option<&mut Buffer>,
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: f32,
        _: usize,
    ) -> Result<()> {
        absent("norm_backward")
    }
}
pub mod rotary {
    use super::*;
    #[allow(clippy::too_many_arguments)]
    pub fn rotate(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: usize, _: usize, _: usize, _: usize, _: usize, _: bool) -> Result<()> {
        absent("rotate")
    }
}
pub mod attention {
    use super::*;
    #[allow(clippy::too_many_arguments)]
    pub fn attention(_: &CudaDevice, _: AttentionShape, _: &mut Buffer, _: &Buffer, _: &Buffer, _: &Buffer, _: &Indices) -> Result<()> {
        absent("attention")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn attention_backward(
        _: &CudaDevice,
        _: AttentionShape,
        _: &mut Buffer,
        _: &mut Buffer,
        _: &mut Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &Buffer,
        _: &Indices,
    ) -> Result<()> {
        absent("attention_backward")
    }
}
pub mod weights {
    use super::*;
    #[allow(clippy::too_many_arguments)]
    pub fn embed(_: &CudaDevice, _: &mut Buffer, _: &Weight, _: &Indices, _: usize) -> Result<()> {
        absent("embed")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn add_positions(_: &CudaDevice, _: &mut Buffer, _: &Weight, _: usize, _: usize, _: usize) -> Result<()> {
        absent("add_positions")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn row_l1(_: &CudaDevice, _: &mut Buffer, _: &Weight) -> Result<()> {
        absent("row_l1")
    }
}
pub mod sequence {
    use super::*;
    #[allow(clippy::too_many_arguments)]
    pub fn embed_backward(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: &Indices, _: usize, _: usize) -> Result<()> {
        absent("embed_backward")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn positions_backward(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: usize, _: usize, _: usize, _: usize) -> Result<()> {
        absent("positions_backward")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn patches(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: usize, _: usize, _: usize, _: usize) -> Result<()> {
        absent("patches")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn mean_pool(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: usize, _: usize, _: usize) -> Result<()> {
        absent("mean_pool")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn mean_pool_backward(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: usize, _: usize, _: usize) -> Result<()> {
        absent("mean_pool_backward")
    }
}
pub mod loss {
    use super::*;
    #[allow(clippy::too_many_arguments)]
    pub fn softmax(_: &CudaDevice, _: &mut Buffer, _: usize, _: usize) -> Result<()> {
        absent("softmax")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn cross_entropy(_: &CudaDevice, _: Option<&mut Buffer>, _: &Buffer, _: &Indices, _: usize, _: usize) -> Result<f64> {
        absent("cross_entropy")
    }
}
pub mod training {
    use super::*;
    #[allow(clippy::too_many_arguments)]
    pub fn adamw(_: &CudaDevice, _: &mut Buffer, _: &Buffer, _: &mut Buffer, _: &mut Buffer, _: usize, _: AdamW) -> Result<()> {
        absent("adamw")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn sum_of_squares(_: &CudaDevice, _: &Buffer, _: usize) -> Result<f64> {
        absent("sum_of_squares")
    }
    #[allow(clippy::too_many_arguments)]
    pub fn residual_change(_: &CudaDevice, _: &Buffer, _: &Buffer, _: usize, _: usize) -> Result<(f64, f64)> {
        absent("residual_change")
    }
}
