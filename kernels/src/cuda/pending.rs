//! Launchers that are not there yet. Whoever adds one takes its module out of here and adds `mod NAME;` to `mod.rs`.

use super::CudaDevice;
use super::memory::{Buffer, Indices};
use super::weight::Weight;
use crate::device::Product;
use crate::error::{KernelError, Result};

fn absent<T>(operation: &'static str) -> Result<T> {
    Err(KernelError::Device { operation, reason: "its kernel is not built in".to_string(), lost: false })
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
