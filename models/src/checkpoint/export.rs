//! Writes a checkpoint folder: `config.json`, `model.safetensors` and, where there is one, `tokenizer.json`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Map, json};

use super::Dialect;
use super::dialects::describe;
use super::names::{SourceTensor, names, prefix, source_tensors};
use super::streams::{Planned, gather, plan};
use crate::artifact::folder;
use crate::error::{Error, Result};
use crate::formats::{encode_values, rounded};
use crate::manifest::Manifest;
use crate::source::TensorSource;
use crate::tensor::DType;

/// Writes the model as a checkpoint to the folder `dir`, which must not exist or be empty, in `dialect` or, where that is none, in the
/// dialect it came from.
///
/// Matrices keep their stored format (quantised ones become f32); vectors take the matrices' format where that is exact, else f32. The
/// files are written to a folder beside `dir`, which is then renamed. Memory: the largest tensor and 1 MiB.
///
/// # Errors
/// [`Error::Inexpressible`] where the dialect cannot express the model's shape, [`Error::Write`] where `dir` is in use, [`Error::Io`], and
/// what `source` returns.
pub fn export_safetensors(source: &dyn TensorSource, manifest: &Manifest, dir: &Path, dialect: Option<Dialect>) -> Result<()> {
    let refuse = |problem: String| Error::Write { path: dir.to_path_buf(), problem };
    let dialect = match dialect {
        Some(dialect) => dialect,
        None => Dialect::parse(&manifest.origin.dialect)
            .ok_or_else(|| refuse(format!("the model's origin `{}` is not a known dialect", manifest.origin.dialect)))?,
    };
    let common = common_dtype(manifest);
    let config = describe(manifest, dialect, common)?;
    if dir.exists() && std::fs::read_dir(dir).map_err(Error::io("read", dir))?.next().is_some() {
        return Err(refuse("the folder is there and not empty; remove it or choose another".to_string()));
    }
    if dir.file_name().is_none() {
        return Err(refuse("it does not end in a folder's name".to_string()));
    }
    // Like any new folder: accessible as the process's umask allows.
    let rights = std::fs::Permissions::from_mode(0o777);
    let temporary = tempfile::Builder::new().prefix(".export").permissions(rights).tempdir_in(folder(dir));
    let temporary = temporary.map_err(Error::io("create a folder beside", dir))?;
    write_file(&temporary.path().join("config.json"), |file| file.write_all(config.as_bytes()))?;
    if let Some(tokenizer) = source.tokenizer()? {
        write_file(&temporary.path().join("tokenizer.json"), |file| file.write_all(tokenizer))?;
    }
    write_tensors(source, manifest, dialect, common, &temporary.path().join("model.safetensors"))?;
    let sync = |path: &Path| File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io("make durable", path));
    sync(temporary.path())?;
    std::fs::rename(temporary.path(), dir).map_err(Error::io("rename a finished folder to", dir))?;
    let _renamed = temporary.keep();
    sync(folder(dir))
}

/// The 16-bit format that all matrices share, else f32.
fn common_dtype(manifest: &Manifest) -> DType {
    let mut matrices = manifest.tensors.iter().filter(|tensor| !tensor.key.part.is_vector()).map(|tensor| tensor.dtype);
    match matrices.next() {
        Some(first @ (DType::F16 | DType::Bf16)) if matrices.all(|dtype| dtype == first) => first,
        _ => DType::F32,
    }
}

/// Writes `model.safetensors`: length, header, then the tensors, f32 first so that every number is aligned.
fn write_tensors(source: &dyn TensorSource, manifest: &Manifest, dialect: Dialect, common: DType, path: &Path) -> Result<()> {
    let tensors = source_tensors(names(dialect), prefix(dialect), &manifest.architecture, &manifest.shape());
    let is_exact = |&value: &f32| rounded(common, value).to_bits() == value.to_bits();
    let mut planned = plan(manifest, tensors, &|tensor, stored| {
        let shares = tensor.form.is_vector() && weights(tensor, source)?.iter().all(is_exact);
        Ok(if shares { common } else { stored })
    })?;
    planned.sort_by_key(|planned| planned.dtype != DType::F32);
    let header = header(&planned).ok_or_else(|| Error::Write { path: path.to_path_buf(), problem: "it would be too large".to_string() })?;
    let file = File::create_new(path).map_err(Error::io("create", path))?;
    let mut file = BufWriter::with_capacity(1 << 18, file);
    let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io("write", path));
    write(&(header.len() as u64).to_le_bytes())?;
    write(&header)?;
    let mut bytes = Vec::new();
    for planned in &planned {
        for numbers in weights(&planned.tensor, source)?.chunks(1 << 16) {
            encode_values(planned.dtype, numbers, &mut bytes);
            write(&bytes)?;
            bytes.clear();
        }
    }
    file.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all()).map_err(Error::io("write", path))
}

/// One source tensor's weights, as the source stores them.
fn weights(tensor: &SourceTensor, source: &dyn TensorSource) -> Result<Vec<f32>> {
    let mut numbers = gather(tensor, source)?;
    let offset = tensor.form.offset();
    if offset != 0.0 {
        numbers.iter_mut().for_each(|number| *number -= offset);
    }
    Ok(numbers)
}

/// The JSON header, padded with spaces to a multiple of 8 bytes; none where the offsets do not fit.
fn header(planned: &[Planned]) -> Option<Vec<u8>> {
    let mut fields = Map::new();
    // Transformers refuses files that do not say which framework's layout they have.
    fields.insert("__metadata__".to_string(), json!({ "format": "pt" }));
    let mut end = 0u64;
    for Planned { tensor, dtype, bytes } in planned {
        let start = end;
        end = start.checked_add(*bytes)?;
        let dtype = match dtype {
            DType::F16 => "F16",
            DType::Bf16 => "BF16",
            _ => "F32",
        };
        fields.insert(tensor.name.clone(), json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end] }));
    }
    let mut header = serde_json::to_vec(&fields).ok()?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Some(header)
}

/// Creates a file, lets `fill` write it and makes it durable.
fn write_file(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let mut file = File::create_new(path).map_err(Error::io("create", path))?;
    fill(&mut file).and_then(|()| file.sync_all()).map_err(Error::io("write", path))
}
