//! Networks from artifacts, and fresh ones.

use std::ops::Range;
use std::sync::Arc;

use espalier_kernels::{Device, Format, HostBytes};
use espalier_models::artifact::Artifact;
use espalier_models::{Architecture, DType, Layout, ModelShape, Part, TensorKey, TensorSource};

use crate::error::{Result, RuntimeError};
use crate::network::{Network, ParameterSource};
use crate::pages::{Pages, Residency};

impl<D: Device> Network<D> {
    /// The network of a mapped artifact. Matrices stay in the artifact's pages; vectors (norms and biases) are copied. Every chunk is
    /// checked before it is used.
    pub fn load(device: D, artifact: &Arc<Artifact>, residency: Residency) -> Result<Self> {
        let manifest = artifact.manifest();
        let (architecture, shape) = (manifest.architecture.clone(), manifest.shape());
        let pages = Pages::of(artifact, &shape, residency);
        let mut source = MappedSource { artifact, residency };
        Self::assemble(device.for_model(), architecture, shape, &mut source, pages)
    }

    /// A fresh network of `shape`, trainable: matrices are normal with standard deviation 0.02 (as GPT-2's, Radford et al., 2019), the
    /// projections that write to the residual stream divided by `√(2 · layers)`, norms 1, biases 0. `normal` yields standard normal numbers.
    pub fn initialise(device: D, architecture: Architecture, shape: ModelShape, normal: &mut dyn FnMut() -> f32) -> Result<Self> {
        let layers = shape.kept().count().max(1);
        let mut source = FreshSource { normal, residual: 0.02 / (2.0 * layers as f32).sqrt() };
        Self::assemble(device, architecture, shape, &mut source, Pages::none())
    }

    /// A trainable copy of an artifact.
    pub fn copy_trainable(device: D, artifact: &Artifact) -> Result<Self> {
        let manifest = artifact.manifest();
        Self::assemble(device, manifest.architecture.clone(), manifest.shape(), &mut CopySource { artifact }, Pages::none())
    }
}

/// Reads tensors in place.
struct MappedSource<'a> {
    artifact: &'a Arc<Artifact>,
    residency: Residency,
}

impl<D: Device> ParameterSource<D> for MappedSource<'_> {
    fn matrix(&mut self, device: &D, key: TensorKey, rows: usize, columns: usize) -> Result<D::Weight> {
        let artifact = self.artifact;
        let stored = artifact.find(key).ok_or_else(|| RuntimeError::Input(format!("{} has no tensor {key}", artifact.path().display())))?;
        artifact.check(stored)?;
        if self.residency == Residency::Streamed {
            artifact.unmap_pages(artifact.range(stored))?;
        }
        let format = kernel_format(stored.dtype, stored.layout);
        let bytes = HostBytes { owner: artifact.map(), range: artifact.range(stored) };
        let weight = device.map_weight(bytes, format, rows, columns)?;
        artifact.check_pages()?;
        // Pages that the device reads, in place or registered, stay and are counted where they are mapped.
        if !device.reads_host(&weight) {
            artifact.unmap_pages(artifact.range(stored))?;
        }
        Ok(weight)
    }

    fn vector(&mut self, device: &D, key: TensorKey, len: usize) -> Result<D::Buffer> {
        let numbers = self.artifact.vector(key)?;
        if numbers.len() != len {
            return Err(RuntimeError::Input(format!(
                "{}: {key} has {} numbers, expected {len}",
                self.artifact.path().display(),
                numbers.len()
            )));
        }
        upload(device, &numbers)
    }
}

/// How the kernels call what an artifact stores as `dtype` in `layout`.
pub fn kernel_format(dtype: DType, layout: Layout) -> Format {
    match (dtype, layout) {
        (DType::F32, _) => Format::F32,
        (DType::F16, Layout::Rows) => Format::F16,
        (DType::F16, Layout::Interleaved) => Format::F16Pairs,
        (DType::Bf16, Layout::Rows) => Format::Bf16,
        (DType::Bf16, Layout::Interleaved) => Format::Bf16Pairs,
        (DType::Q8, Layout::Rows) => Format::Q8,
        (DType::Q8, Layout::Interleaved) => Format::Q8Units,
        (DType::Q4, Layout::Rows) => Format::Q4,
        (DType::Q4, Layout::Interleaved) => Format::Q4Units,
    }
}

/// Makes fresh tensors.
struct FreshSource<'a> {
    normal: &'a mut dyn FnMut() -> f32,
    residual: f32,
}

impl<D: Device> ParameterSource<D> for FreshSource<'_> {
    fn matrix(&mut self, device: &D, key: TensorKey, rows: usize, columns: usize) -> Result<D::Weight> {
        let deviation = if key.part.is_unit_reduction() { self.residual } else { 0.02 };
        // A patch is read by 64 inputs of unit variance: with 0.02 the signal would start 6 times below the positions' scale at depth.
        let deviation = if key.part == Part::Patch { 1.0 / (columns.max(1) as f32).sqrt() } else { deviation };
        let mut buffer = device.zeros(rows * columns)?;
        let mut row = vec![0.0; columns];
        for index in 0..rows {
            row.iter_mut().for_each(|x| *x = deviation * (self.normal)());
            device.write(&mut buffer, index * columns, &row)?;
        }
        Ok(device.own_weight(buffer, rows, columns)?)
    }

    fn vector(&mut self, device: &D, key: TensorKey, len: usize) -> Result<D::Buffer> {
        let mut buffer = device.zeros(len)?;
        if key.part.is_norm() {
            device.fill(&mut buffer, len, 1.0)?;
        }
        Ok(buffer)
    }
}

/// Copies tensors.
struct CopySource<'a> {
    artifact: &'a Artifact,
}

impl<D: Device> ParameterSource<D> for CopySource<'_> {
    fn matrix(&mut self, device: &D, key: TensorKey, rows: usize, columns: usize) -> Result<D::Weight> {
        let mut buffer = device.zeros(rows * columns)?;
        let mut row = vec![0.0; columns];
        for index in 0..rows {
            self.artifact.read_rows(key, index..index + 1, &mut row)?;
            device.write(&mut buffer, index * columns, &row)?;
        }
        Ok(device.own_weight(buffer, rows, columns)?)
    }

    fn vector(&mut self, device: &D, key: TensorKey, _len: usize) -> Result<D::Buffer> {
        upload(device, &self.artifact.vector(key)?)
    }
}

/// A buffer with `numbers`.
pub(crate) fn upload<D: Device>(device: &D, numbers: &[f32]) -> Result<D::Buffer> {
    let mut buffer = device.zeros(numbers.len())?;
    device.write(&mut buffer, 0, numbers)?;
    Ok(buffer)
}

/// Tensors by key that are read as rows of an artifact: trained parameters or gradients, on their way to a file.
pub struct DeviceTensors<'a, D: Device> {
    device: &'a D,
    tensors: Vec<(TensorKey, &'a D::Buffer, usize)>,
}

impl<'a, D: Device> DeviceTensors<'a, D> {
    /// Of buffers, each with its columns.
    pub fn new(device: &'a D, tensors: Vec<(TensorKey, &'a D::Buffer, usize)>) -> Self {
        Self { device, tensors }
    }
}

impl<D: Device> TensorSource for DeviceTensors<'_, D> {
    fn rows(&self, key: TensorKey, rows: Range<usize>, out: &mut [f32]) -> espalier_models::Result<()> {
        let failed = |problem: String| espalier_models::Error::Request { key, problem };
        let found = self.tensors.iter().find(|(candidate, ..)| *candidate == key);
        let (_, buffer, columns) = found.ok_or_else(|| failed("there is no such tensor on the device".into()))?;
        self.device.read(buffer, rows.start * columns, out).map_err(|error| failed(error.to_string()))
    }

    fn contains(&self, key: TensorKey) -> bool {
        self.tensors.iter().any(|(candidate, ..)| *candidate == key)
    }
}

#[cfg(test)]
mod tests {
    use espalier_models::formats;

    use super::*;

    /// A matrix's bytes are written by one crate and read by another: both have to mean the same.
    #[test]
    fn kernels_find_the_planes_where_artifacts_write_them() {
        let mut wrong = Vec::new();
        for dtype in [DType::F32, DType::F16, DType::Bf16, DType::Q8, DType::Q4] {
            for layout in [Layout::Rows, Layout::Interleaved] {
                if (dtype, layout) == (DType::F32, Layout::Interleaved) {
                    continue;
                }
                for (rows, columns) in [(0, 5), (5, 0), (1, 1), (1, 33), (3, 5), (32, 32), (33, 4), (96, 576), (usize::MAX / 2, 8)] {
                    let stored = formats::Format { dtype, layout, rows, columns };
                    let read = kernel_format(dtype, layout);
                    let planes = formats::blocks::Planes::of(&stored).map(|planes| (planes.quants, planes.scales, planes.minima));
                    let kernel_planes = read.planes(rows, columns).map(|planes| (planes.quants, planes.scales, planes.minima));
                    if planes != kernel_planes || stored.bytes() != read.stored_bytes(rows, columns) {
                        wrong.push(format!("{stored:?}: {planes:?}, {:?}; kernels {kernel_planes:?}", stored.bytes()));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
