//! An exported graph over an artifact's own pages.

use std::borrow::Cow;
use std::ffi::c_void;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use espalier_kernels::{Purpose, Reservation};
use espalier_models::Artifact;
use espalier_models::checkpoint::{OnnxGraph, OnnxOutput, Weight, onnx_graph};
use ort::memory::Allocator;
use ort::session::builder::SessionBuilder;
use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::sys;
use ort::value::{DynValue, Value};

use super::allocator::Account;
use super::library::OrtLibrary;
use super::plan::packed_bytes;
use super::providers::OrtProviders;
use crate::budget::Budget;
use crate::error::{Result, RuntimeError};
use crate::page_allocator::release_free_memory;

/// How ONNX Runtime runs a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrtOptions {
    /// Threads for computing.
    pub threads: usize,
    /// Whether matrices are copied into the order that its products read fastest. Without it f32 weights stay pages of the artifact.
    pub prepack: bool,
    /// What computes, each what those before it do not; the CPU does the rest.
    pub providers: OrtProviders,
}

/// Bytes of a node in ONNX Runtime's copies of a graph: one of 113 nodes took 1.9 MiB of `RssAnon`.
pub(super) const NODE_BYTES: u64 = 17 << 10;

/// A graph that is ready.
pub(super) struct OrtSession {
    session: Session,
    activations: Arc<Account>,
    /// After the session, which reads the map: fields are dropped in this order.
    artifact: Arc<Artifact>,
    _held: [Reservation; 3],
}

impl OrtSession {
    /// Loads the graph of `artifact`, with or without a cache of keys and values, of this output, within `budget`, which has to have room
    /// for a run of `run` bytes behind it.
    ///
    /// # Errors
    /// [`RuntimeError::Kernel`] where memory is refused, [`RuntimeError::Model`] where the artifact has no graph or is damaged, and
    /// [`RuntimeError::Ort`] where ONNX Runtime refuses the graph.
    pub(super) fn open(
        library: &OrtLibrary,
        budget: &Arc<Budget>,
        artifact: &Arc<Artifact>,
        (cache, output): (bool, OnnxOutput),
        run: u64,
        options: OrtOptions,
    ) -> Result<Self> {
        let folder = folder(artifact.path())?;
        let mapped = Reservation::new(budget.clone(), Purpose::Weights, artifact.file_bytes())?;
        let graph = onnx_graph(artifact, cache, output)?;
        let nodes = NODE_BYTES.saturating_mul(graph.nodes as u64);
        let held = Reservation::new(budget.clone(), Purpose::Activations, OrtLibrary::BYTES.saturating_add(nodes))?;
        // What cannot run when it is loaded is not loaded.
        let copied = graph.copied_bytes.saturating_add(packed_bytes(artifact, graph.copied_bytes, options));
        drop(Reservation::new(budget.clone(), Purpose::Activations, copied.saturating_add(run))?);
        let weights = Account::new(budget.clone(), Purpose::Weights);
        // Computing the copies takes more of each, for which ONNX Runtime does not ask the allocator.
        let loading = Reservation::new(budget.clone(), Purpose::Weights, graph.loading_bytes)?;
        let (session, refusal) = weights.enter(true, || load(library, artifact, folder, &graph, options));
        let session = match (session, refusal) {
            (_, Some(refusal)) => return Err(refusal.into()),
            (session, None) => session.map_err(|error| failed(artifact, "load", &error))?,
        };
        weights.keep_used();
        drop(loading);
        // Large copies are made without asking the allocator.
        let copies = Reservation::new(budget.clone(), Purpose::Weights, graph.copied_bytes.saturating_sub(weights.used()))?;
        drop(graph);
        release_free_memory();
        let activations = Account::new(budget.clone(), Purpose::Activations);
        Ok(Self { session, activations, artifact: artifact.clone(), _held: [mapped, held, copies] })
    }

    /// The artifact that is run.
    pub(super) fn artifact(&self) -> &Arc<Artifact> {
        &self.artifact
    }

    /// Books `bytes` for a run that `trial` does, the largest there will be, and then what it took: twice, since some blocks stay after the
    /// first run.
    pub(super) fn try_out(&mut self, bytes: u64, mut trial: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.activations.book(bytes)?;
        for _ in 0..2 {
            trial(self)?;
        }
        self.activations.keep_peak();
        Ok(())
    }

    /// Books `bytes` for runs that are larger than any before.
    ///
    /// # Errors
    /// [`RuntimeError::Kernel`] where memory is refused.
    pub(super) fn book(&self, bytes: u64) -> Result<()> {
        self.activations.book(bytes)
    }

    /// Runs the graph and hands its outputs to `read`.
    pub(super) fn run<T>(&mut self, inputs: Inputs<'_>, read: impl FnOnce(SessionOutputs<'_>) -> ort::Result<T>) -> Result<T> {
        let Self { session, activations, artifact, .. } = self;
        let (result, refusal) = activations.enter(false, || session.run(inputs).and_then(read));
        if let Some(refusal) = refusal {
            return Err(refusal.into());
        }
        // What it makes of zeros is no fault of its own.
        artifact.check_pages()?;
        result.map_err(|error| failed(artifact, "run", &error))
    }
}

/// A run's inputs by name.
pub(super) type Inputs<'a> = Vec<(Cow<'a, str>, SessionInputValue<'a>)>;

/// The error that ONNX Runtime cannot do something with an artifact's graph.
pub(super) fn failed(artifact: &Artifact, what: &str, error: &ort::Error) -> RuntimeError {
    failed_at(artifact.path(), what, error)
}

/// The error that ONNX Runtime cannot do something with the graph of the file at `path`.
pub(super) fn failed_at(path: &Path, what: &str, error: &ort::Error) -> RuntimeError {
    RuntimeError::Ort(format!("ONNX Runtime cannot {what} the graph of {}: {}", path.display(), error.message()))
}

/// The folder of the artifact at `path`, by the text that ONNX Runtime takes for it.
pub(super) fn folder(path: &Path) -> Result<&str> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let refuse =
        || format!("ONNX Runtime cannot find {}: the path of its folder is no UTF-8 text; move the artifact to another", path.display());
    folder.to_str().ok_or_else(|| RuntimeError::Ort(refuse()))
}

/// A session in the making, of a graph whose weights lie in files of `folder`.
pub(super) fn builder(library: &OrtLibrary, folder: &str, options: OrtOptions) -> ort::Result<SessionBuilder> {
    let mut builder = Session::builder(&library.environment)?
        .with_env_allocators()?
        .with_prepacking(options.prepack)?
        // Otherwise a second run takes one block that is larger than what the first one took, and every new shape is remembered for good.
        .with_memory_pattern(false)?
        .with_intra_threads(options.threads)?;
    for provider in options.providers.iter() {
        provider.register(&mut builder)?;
    }
    // The graph names the files of its weights, which ONNX Runtime looks for although it is given every weight.
    Ok(builder.with_config_entry("session.model_external_initializers_file_folder_path", folder)?)
}

fn load(library: &OrtLibrary, artifact: &Artifact, folder: &str, graph: &OnnxGraph, options: OrtOptions) -> ort::Result<Session> {
    let mut builder = builder(library, folder, options)?;
    for weight in &graph.weights {
        builder = with_weight(builder, artifact, weight)?;
    }
    builder.commit_from_memory(&graph.model)
}

/// Gives the builder a weight where the artifact's map has it.
fn with_weight(builder: SessionBuilder, artifact: &Artifact, weight: &Weight) -> ort::Result<SessionBuilder> {
    let map = artifact.map();
    let bytes = map.get(weight.range.clone()).ok_or_else(|| ort::Error::new(format!("`{}` lies outside the file", weight.name)))?;
    let dims: Vec<i64> = weight.dims.iter().map(|&dim| dim as i64).collect();
    // SAFETY: the bytes are `dims` numbers of the weight's type and lie in a map that the session's owner keeps longer than the session.
    unsafe { with_initializer(builder, &weight.name, weight.element as u32, &dims, bytes.as_ptr(), bytes.len()) }
}

/// Gives the builder an initializer of `length` bytes at `start`, which is not copied; `element` is a number of ONNX's `TensorProto.DataType`.
///
/// # Safety
/// The bytes are `dims` numbers of `element`, aligned for them; they outlive the session and do not change while it lives.
pub(super) unsafe fn with_initializer(
    builder: SessionBuilder,
    name: &str,
    element: u32,
    dims: &[i64],
    start: *const u8,
    length: usize,
) -> ort::Result<SessionBuilder> {
    use sys::ONNXTensorElementDataType as Type;
    let element = match element {
        1 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        2 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        3 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        10 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        11 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        16 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        _ => return Err(ort::Error::new(format!("`{name}` has numbers that no weight has"))),
    };
    let (mut info, mut value) = (ptr::null_mut(), ptr::null_mut());
    let api = ort::api();
    // SAFETY: the library is loaded; `info` is written on success and released below. ONNX Runtime only reads the bytes, of which the caller
    // promises the rest.
    let status = unsafe {
        let status = (api.CreateCpuMemoryInfo)(sys::OrtAllocatorType::OrtDeviceAllocator, sys::OrtMemType::OrtMemTypeDefault, &mut info);
        ort::Error::result_from_status(status)?;
        let data = start.cast_mut().cast::<c_void>();
        let status = (api.CreateTensorWithDataAsOrtValue)(info, data, length, dims.as_ptr(), dims.len(), element, &mut value);
        (api.ReleaseMemoryInfo)(info);
        ort::Error::result_from_status(status)
    };
    status?;
    let value = NonNull::new(value).ok_or_else(|| ort::Error::new(format!("`{name}` became no tensor")))?;
    // SAFETY: the value was just made and is owned by no one else.
    let value: DynValue = unsafe { Value::from_ptr(value, Some(&Allocator::default())) };
    builder.with_initializer(name, value).map_err(ort::Error::into)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::sync::PoisonError;

    use espalier_models::checkpoint::import;

    use super::super::allocator::tests::ONE_AT_A_TIME;
    use super::*;

    /// Loads `graph` within a gibibyte, as a session does.
    fn loads(library: &OrtLibrary, artifact: &Artifact, graph: &OnnxGraph) -> ort::Result<Session> {
        let options = OrtOptions { threads: 1, prepack: false, providers: OrtProviders::CPU };
        let account = Account::new(Arc::new(Budget::new(1 << 30, 0)), Purpose::Weights);
        account.enter(true, || load(library, artifact, folder(artifact.path()).unwrap(), graph, options)).0
    }

    #[test]
    fn a_damaged_graph_is_an_error_or_a_session() {
        let library = match OrtLibrary::open(None) {
            Ok(library) => library,
            Err(error) => {
                assert!(std::env::var("CI").as_deref() != Ok("true"), "{error}");
                eprintln!("SKIPPED: {error}");
                return;
            }
        };
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model.esp");
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/gpt2");
        import(&fixture, &path, None, &mut |_, _| {}).unwrap();
        let artifact = Artifact::open(&path).unwrap();
        let mut graph = onnx_graph(&artifact, false, OnnxOutput::Logits).unwrap();
        loads(library, &artifact, &graph).unwrap();
        let whole = graph.model.clone();
        let mut refused = 0;
        let mut check = |bytes: Vec<u8>| {
            graph.model = bytes;
            refused += usize::from(loads(library, &artifact, &graph).is_err());
        };
        let cuts: Vec<usize> = (0..whole.len()).step_by(whole.len() / 60).collect();
        cuts.iter().for_each(|&length| check(whole[..length].to_vec()));
        let mut state = 1_u64;
        for _ in 0..200 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut bytes = whole.clone();
            let place = (state >> 33) as usize % bytes.len();
            bytes[place] ^= (state >> 20) as u8 | 1;
            check(bytes);
        }
        assert!(refused >= cuts.len(), "{refused} graphs were refused, of {} that were cut short", cuts.len());
    }

    #[test]
    fn a_folder_that_is_no_text_is_refused() {
        assert_eq!(folder(Path::new("model.esp")).unwrap(), ".");
        assert_eq!(folder(Path::new("models/model.esp")).unwrap(), "models");
        let refusal = folder(&Path::new(OsStr::from_bytes(b"\xff")).join("model.esp")).unwrap_err().to_string();
        assert!(refusal.contains("is no UTF-8 text"), "{refusal}");
    }
}
