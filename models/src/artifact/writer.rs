//! Writes an artifact tensor by tensor, in the order in which tensors lie, with a fixed amount of memory.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::header::{HEADER_BYTES, Header};
use super::plan::Plan;
use super::sink::Sink;
use super::{MAX_MANIFEST_BYTES, format_of, validate};
use crate::error::{Error, Result};
use crate::formats::blocks::{BLOCK, Planes};
use crate::formats::{Format, encode_pair, encode_values};
use crate::manifest::{Manifest, StoredTensor};
use crate::tensor::{DType, Layout, TensorKey};

/// Numbers encoded at once: with their bytes, well below 1 MiB.
const BLOCK_NUMBERS: usize = 64 * 1024;

/// Length in bytes of the artifact that [`ArtifactWriter`] makes from `manifest` in `dtype`.
///
/// # Errors
/// [`Error::Write`] where the model cannot be written: see [`ArtifactWriter::create`].
pub fn expected_bytes(manifest: &Manifest, dtype: DType) -> Result<u64> {
    plan(Path::new("the artifact"), manifest.clone(), dtype).map(|plan| plan.file_bytes)
}

/// Checks the manifest and places its tensors.
fn plan(path: &Path, manifest: Manifest, dtype: DType) -> Result<Plan> {
    let refuse = |problem: String| Error::Write { path: path.to_path_buf(), problem };
    if manifest.levels.iter().any(|level| !level.adapters.is_empty() || !level.overrides.is_empty()) {
        return Err(refuse("writing levels with adapters or overrides of their own is not supported".to_string()));
    }
    validate::model(&manifest).map_err(refuse)?;
    let plan = Plan::new(manifest, dtype).map_err(refuse)?;
    if plan.encoded.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(refuse(format!("its manifest has {} bytes, more than the {MAX_MANIFEST_BYTES} allowed", plan.encoded.len())));
    }
    Ok(plan)
}

/// Writes one artifact: rows are given tensor after tensor, then [`finish`](Self::finish) puts the file in its place.
///
/// Until then the file has another name in the same folder; a writer that is dropped leaves nothing behind.
pub struct ArtifactWriter {
    path: PathBuf,
    plan: Plan,
    sink: Sink,
    /// The tensor that is being written, in plan order.
    tensor: usize,
    /// Numbers of it that have been written.
    written: usize,
    /// Rows of an interleaved tensor that wait for those that are stored with them: of a pair, or of a block of 32.
    pending: Vec<f32>,
    /// Blocks of a quantised tensor whose scales have been written.
    blocks: usize,
    /// Encoded bytes on their way to the file.
    encoded: Vec<u8>,
    /// Whether rows that are not given are zero, and holes in the file.
    sparse: bool,
}

impl ArtifactWriter {
    /// Plans the artifact `path` in `dtype` (vectors are always f32) and reserves its space on the disk. `manifest.tensors` is replaced.
    ///
    /// # Errors
    /// [`Error::Write`] where the manifest makes no sense or asks for what cannot be written (levels with data of their own);
    /// [`Error::Io`], for one where the disk has no room.
    pub fn create(path: &Path, manifest: Manifest, dtype: DType) -> Result<Self> {
        let writer = Self::begin(path, manifest, dtype, false)?;
        reserve(writer.sink.file(), writer.plan.file_bytes).map_err(Error::io("reserve space for", path))?;
        Ok(writer)
    }

    /// As [`create`](Self::create), for an artifact whose tensors are mostly zero: rows and whole tensors that are not given are zero, and
    /// holes in the file where the file system has them. It shows what a model of a size does without its bytes.
    ///
    /// # Errors
    /// Those of [`create`](Self::create).
    pub fn create_sparse(path: &Path, manifest: Manifest, dtype: DType) -> Result<Self> {
        Self::begin(path, manifest, dtype, true)
    }

    fn begin(path: &Path, manifest: Manifest, dtype: DType, sparse: bool) -> Result<Self> {
        let plan = plan(path, manifest, dtype)?;
        let Some(name) = path.file_name() else {
            return Err(Error::Write { path: path.to_path_buf(), problem: "it does not end in a file name".to_string() });
        };
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        // Like any new file: readable as the process's umask allows.
        let rights = std::fs::Permissions::from_mode(0o666);
        let file = tempfile::Builder::new().prefix(&prefix).suffix(".part").permissions(rights).tempfile_in(folder(path));
        let file = file.map_err(Error::io("create a file beside", path))?;
        // What is never written, between tensors or in a sparse artifact, is zero from here on.
        file.as_file().set_len(plan.file_bytes).map_err(Error::io("set the length of", path))?;
        let sink = Sink::new(file, plan.data_start);
        Ok(Self {
            path: path.to_path_buf(),
            plan,
            sink,
            tensor: 0,
            written: 0,
            pending: Vec::new(),
            blocks: 0,
            encoded: Vec::new(),
            sparse,
        })
    }

    /// The manifest with all tensors placed, in the order in which they must be written.
    pub fn manifest(&self) -> &Manifest {
        &self.plan.manifest
    }

    /// Length in bytes of the finished file.
    pub fn file_bytes(&self) -> u64 {
        self.plan.file_bytes
    }

    /// Bytes of the file that have been written.
    pub fn written_bytes(&self) -> u64 {
        self.sink.position()
    }

    /// Writes the raw `tokenizer.json`, before the first tensor; the manifest says how long it is.
    ///
    /// # Errors
    /// [`Error::Write`] where the manifest has no tokenizer of this length or it comes too late; [`Error::Io`].
    pub fn write_tokenizer(&mut self, json: &[u8]) -> Result<()> {
        let expected = self.plan.manifest.tokenizer.map(|span| span.bytes);
        if expected != Some(json.len() as u64) || self.sink.position() != self.plan.data_start {
            let problem = format!("a tokenizer of {} bytes was given where the manifest has {expected:?}, or after a tensor", json.len());
            return Err(Error::Write { path: self.path.clone(), problem });
        }
        self.sink.put(json).map_err(Error::io("write", &self.path))
    }

    /// Appends `rows [n, columns]` to the tensor `key`. Tensors come in the manifest's order, each complete before the next; those without
    /// numbers may be left out.
    ///
    /// # Errors
    /// [`Error::Request`] where the tensor is not the next or the numbers do not make whole rows that still belong to it;
    /// [`Error::NotFinite`], [`Error::TooLarge`], [`Error::Io`].
    pub fn write_rows(&mut self, key: TensorKey, rows: &[f32]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        if self.sparse {
            self.pass_over(key)?;
        }
        let Some(tensor) = self.next_tensor() else {
            return Err(Error::request(key, "all tensors have been written already"));
        };
        if tensor.key != key {
            return Err(Error::request(key, format!("`{}` must be written first, {} numbers of it are there", tensor.key, self.written)));
        }
        let (columns, numbers) = (tensor.columns as usize, numbers(&tensor));
        if !rows.len().is_multiple_of(columns) || rows.len() > numbers - self.written {
            return Err(Error::request(
                key,
                format!("{} numbers do not make rows of {columns} among the {} that are missing", rows.len(), numbers - self.written),
            ));
        }
        self.check_values(&tensor, rows)?;
        self.expect_tokenizer()?;
        self.sink.skip_to(tensor.offset);
        match tensor.layout {
            _ if is_quantised(&tensor) => self.write_quantised(&tensor, rows)?,
            Layout::Rows => rows.chunks(BLOCK_NUMBERS).try_for_each(|block| {
                encode_values(tensor.dtype, block, &mut self.encoded);
                self.flush(block.len())
            })?,
            Layout::Interleaved => self.write_interleaved(&tensor, rows)?,
        }
        Ok(())
    }

    /// Writes rows of a 16-bit interleaved matrix in pairs; the last row of an odd number of rows is paired with zeros.
    fn write_interleaved(&mut self, tensor: &StoredTensor, rows: &[f32]) -> Result<()> {
        for row in rows.chunks_exact(tensor.columns as usize) {
            let last = self.written + self.pending.len() + row.len() == numbers(tensor);
            if self.pending.is_empty() && !last {
                self.pending.extend_from_slice(row);
                continue;
            }
            let pending = std::mem::take(&mut self.pending);
            let (even, odd) = if pending.is_empty() { (row, &[][..]) } else { (&pending[..], row) };
            encode_pair(tensor.dtype, even, odd, &mut self.encoded);
            self.flush(even.len() + odd.len())?;
            self.pending = pending;
            self.pending.clear();
        }
        Ok(())
    }

    /// Writes rows of a quantised matrix; of an interleaved one, in blocks of 32 rows, the last with those that there are.
    fn write_quantised(&mut self, tensor: &StoredTensor, rows: &[f32]) -> Result<()> {
        let columns = tensor.columns as usize;
        if tensor.layout == Layout::Rows {
            rows.chunks(columns * (BLOCK_NUMBERS / columns).max(1)).try_for_each(|block| self.quantise(tensor, block))?;
        } else {
            let mut rest = rows;
            while !rest.is_empty() {
                let (part, after) = rest.split_at(rest.len().min(BLOCK * columns - self.pending.len()));
                self.pending.extend_from_slice(part);
                rest = after;
                if self.pending.len() == BLOCK * columns || self.written + self.pending.len() == numbers(tensor) {
                    self.quantise_pending(tensor)?;
                }
            }
        }
        if self.written == numbers(tensor) { self.end_planes(tensor) } else { Ok(()) }
    }

    fn quantise_pending(&mut self, tensor: &StoredTensor) -> Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        let done = self.quantise(tensor, &pending);
        pending.clear();
        self.pending = pending;
        done
    }

    /// Writes whole rows: their quants, which follow those before, and their scales and minima to the planes behind, for which
    /// [`end_planes`](Self::end_planes) takes the checksums.
    fn quantise(&mut self, tensor: &StoredTensor, rows: &[f32]) -> Result<()> {
        let whole = format_of(tensor);
        let part = Format { rows: rows.len() / tensor.columns as usize, ..whole };
        let refuse = |problem: String| Error::request(tensor.key, problem);
        let bytes = part.encode(rows).map_err(refuse)?;
        let planes = |format: &Format| Planes::of(format).ok_or_else(|| refuse(format!("{format:?} is not quantised")));
        let (whole, part) = (planes(&whole)?, planes(&part)?);
        let behind = |plane: usize| tensor.offset + (plane + 2 * self.blocks) as u64;
        let file = self.sink.file();
        file.write_all_at(&bytes[part.scales.clone()], behind(whole.scales.start))
            .and_then(|()| file.write_all_at(&bytes[part.minima], behind(whole.minima.start)))
            .map_err(Error::io("write", &self.path))?;
        self.blocks += part.scales.len() / 2;
        self.encoded.extend_from_slice(&bytes[part.quants]);
        self.flush(rows.len())
    }

    /// Ends a quantised tensor: the checksums of its scales and minima, which are in the file already.
    fn end_planes(&mut self, tensor: &StoredTensor) -> Result<()> {
        let blocks = std::mem::take(&mut self.blocks);
        let Some(planes) = Planes::of(&format_of(tensor)).filter(|_| blocks > 0) else { return Ok(()) };
        for plane in [planes.scales, planes.minima].into_iter().filter(|plane| !plane.is_empty()) {
            let start = tensor.offset + plane.start as u64;
            self.sink.skip_to(start);
            self.sink.count_written(2 * blocks).map_err(Error::io("read", &self.path))?;
        }
        Ok(())
    }

    /// Refuses to go on where the manifest has a tokenizer that has not been written.
    fn expect_tokenizer(&self) -> Result<()> {
        match self.plan.manifest.tokenizer {
            Some(span) if self.sink.position() < span.offset + span.bytes => {
                let problem = format!("its tokenizer of {} bytes must be written before its tensors", span.bytes);
                Err(Error::Write { path: self.path.clone(), problem })
            }
            _ => Ok(()),
        }
    }

    /// Looks for values that are not finite or that rounding to the tensor's format would make infinite.
    fn check_values(&self, tensor: &StoredTensor, rows: &[f32]) -> Result<()> {
        // The smallest magnitudes that round to infinity: half a step above the largest finite number.
        let limit = match tensor.dtype {
            DType::F16 => 65_520.0,
            DType::Bf16 => f32::from_bits(0x7f7f_8000),
            // The largest quant times the largest scale, and the lowest minimum.
            DType::Q8 => 127.0 * 65_520.0,
            DType::Q4 => 65_520.0,
            DType::F32 => f32::INFINITY,
        };
        let Some(at) = rows.iter().position(|value| value.is_nan() || value.abs() >= limit) else { return Ok(()) };
        let (path, value, element) = (self.path.clone(), rows[at], self.written + self.pending.len() + at);
        Err(match value.is_finite() {
            true => Error::TooLarge { path, tensor: tensor.key, element, value, dtype: tensor.dtype },
            false => Error::NotFinite { path, tensor: tensor.key.to_string(), element, value },
        })
    }

    /// Writes `encoded`, which holds `count` numbers.
    fn flush(&mut self, count: usize) -> Result<()> {
        let put = self.sink.put(&self.encoded);
        self.encoded.clear();
        put.map_err(Error::io("write", &self.path))?;
        self.written += count;
        Ok(())
    }

    /// Leaves what is missing before the tensor `key` as holes.
    fn pass_over(&mut self, key: TensorKey) -> Result<()> {
        while let Some(tensor) = self.next_tensor().filter(|tensor| tensor.key != key) {
            self.leave_rest(&tensor)?;
        }
        Ok(())
    }

    /// Leaves the rest of `tensor` as a hole; rows that wait for others are written with zeros in their places.
    fn leave_rest(&mut self, tensor: &StoredTensor) -> Result<()> {
        if is_quantised(tensor) {
            if !self.pending.is_empty() {
                self.pending.resize(BLOCK.min((numbers(tensor) - self.written) / tensor.columns as usize) * tensor.columns as usize, 0.0);
                self.quantise_pending(tensor)?;
            }
            self.end_planes(tensor)?;
        }
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            encode_pair(tensor.dtype, &pending, &[], &mut self.encoded);
            self.flush(pending.len())?;
        }
        (self.tensor, self.written) = (self.tensor + 1, 0);
        Ok(())
    }

    /// The tensor that must be written next, those without numbers and the complete ones passed over.
    fn next_tensor(&mut self) -> Option<StoredTensor> {
        loop {
            let tensor = self.plan.manifest.tensors.get(self.tensor)?;
            if self.written < numbers(tensor) {
                return Some(tensor.clone());
            }
            (self.tensor, self.written) = (self.tensor + 1, 0);
        }
    }

    /// Writes header, manifest and table, makes everything durable and puts the file in its place. Returns where it is.
    ///
    /// # Errors
    /// [`Error::Request`] where a tensor is not complete; [`Error::Io`].
    pub fn finish(mut self) -> Result<PathBuf> {
        while let Some(tensor) = self.next_tensor().filter(|_| self.sparse) {
            self.leave_rest(&tensor)?;
        }
        if let Some(tensor) = self.next_tensor() {
            let problem = format!("only {} of its {} numbers have been written", self.written + self.pending.len(), numbers(&tensor));
            return Err(Error::request(tensor.key, problem));
        }
        self.expect_tokenizer()?;
        self.sink.skip_to(self.plan.file_bytes);
        let (file, table) = self.sink.end_chunks();
        let header = Header {
            manifest_crc: crc32c::crc32c(&self.plan.encoded),
            manifest_bytes: self.plan.encoded.len() as u64,
            table_crc: crc32c::crc32c(&table),
            table_bytes: table.len() as u64,
            data_start: self.plan.data_start,
            file_bytes: self.plan.file_bytes,
        };
        let write = |bytes: &[u8], at: usize| file.as_file().write_all_at(bytes, at as u64);
        write(&header.encode(), 0)
            .and_then(|()| write(&self.plan.encoded, HEADER_BYTES))
            .and_then(|()| write(&table, header.table().start))
            .and_then(|()| file.as_file().sync_all())
            .map_err(Error::io("write", &self.path))?;
        file.persist(&self.path).map_err(|error| Error::io("rename a finished file to", &self.path)(error.error))?;
        let folder = folder(&self.path);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("make durable", folder))?;
        Ok(self.path)
    }
}

/// Numbers in a tensor.
fn numbers(tensor: &StoredTensor) -> usize {
    tensor.rows as usize * tensor.columns as usize
}

fn is_quantised(tensor: &StoredTensor) -> bool {
    matches!(tensor.dtype, DType::Q8 | DType::Q4)
}

/// The folder that holds `path`.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Asks for the file's space at once, so that a full disk is known before the work; a file system without this reports it while writing.
fn reserve(file: &File, bytes: u64) -> std::io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
