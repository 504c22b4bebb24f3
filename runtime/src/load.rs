//! Networks from artifacts, and fresh ones.

use std::ops::Range;
use std::sync::Arc;

use espalier_kernels::{Device, HostBytes};
use espalier_models::artifact::Artifact;
use espalier_models::{Architecture, ModelShape, Part, TensorKey, TensorSource};

use crate::coverage::native_format;
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
        Self::assemble(device, architecture, shape, &mut source, pages)
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
        let format = native_format(stored).map_err(|part| part.of(artifact.path()))?;
        let bytes = HostBytes { owner: artifact.map(), range: artifact.range(stored) };
        let weight = device.map_weight(bytes, format, rows, columns)?;
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
