//! The artifact: a model in one file that is mapped into memory and never copied.
//!
//! ```text
//! header (64 bytes) | manifest (postcard) | chunk table (one CRC32C a chunk) | zeros | data: tokenizer, tensors, little-endian
//! ```
//!
//! Tensors of 1 MiB and more start at multiples of 64 KiB, so that their rows lie on pages of their own and a tail can be given back;
//! smaller ones start at multiples of 64 bytes and share pages. Every byte is covered: the header, the manifest and the table by checksums that
//! [`Artifact::open`] compares, the zeros before the data by being zero, the data by one CRC32C for every 256 KiB, compared before a
//! chunk's first use and by [`Artifact::verify`].
//!
//! A page that cannot be read is an error value where the program replaces such pages: [`replace_page`].
//!
//! An artifact is never changed in place: it is written beside its place and renamed ([`ArtifactWriter`]).

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Mmap, UncheckedAdvice};

use crate::error::{Error, Result};
use crate::formats::Format;
use crate::manifest::{Manifest, Span, StoredTensor};
use crate::source::TensorSource;
use crate::tensor::TensorKey;

mod header;
mod mapped;
mod plan;
mod sink;
#[cfg(test)]
mod tests;
pub(crate) mod validate;
mod writer;

use header::Header;
pub use mapped::{MappedFile, lost_pages, replace_page};
pub(crate) use writer::folder;
pub use writer::{ArtifactWriter, expected_bytes};

/// The newest artifact format version that this program reads, and the one that it writes.
pub const FORMAT_VERSION: u32 = 2;

/// Bytes of data that one entry of the chunk table covers.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Tensors of this many bytes and more start on a page of their own.
pub const LARGE_TENSOR_BYTES: u64 = 1 << 20;

/// Where large tensors start: a multiple of the largest page size in use (64 KiB on some aarch64 kernels).
const ALIGNMENT_LARGE: u64 = 64 * 1024;

/// Where small tensors start: a multiple of a cache line.
const ALIGNMENT_SMALL: u64 = 64;

/// Where the data region starts: a multiple of this, so that the manifest's page holds no weights on common page sizes.
const DATA_ALIGNMENT: u64 = 4096;

/// The longest manifest: some 50 million original indices fit.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;

/// A model in a file, mapped into memory.
pub struct Artifact {
    path: PathBuf,
    file: File,
    map: Arc<MappedFile>,
    header: Header,
    manifest: Manifest,
    /// Index in `manifest.tensors`.
    index: HashMap<TensorKey, usize>,
    /// One bit a chunk: whether its checksum has been compared.
    checked: Vec<AtomicU64>,
}

impl Artifact {
    /// Maps the artifact at `path` and checks header, manifest, chunk table, bounds and the file's length; reads no tensor.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NotAnArtifact`], [`Error::NewerVersion`], [`Error::Damaged`] or [`Error::Manifest`].
    pub fn open(path: &Path) -> Result<Self> {
        // A named pipe would block in `File::open`.
        if !std::fs::metadata(path).map_err(Error::io("open", path))?.is_file() {
            return Err(Error::NotAnArtifact { path: path.to_path_buf() });
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        if file.metadata().map_err(Error::io("read", path))?.len() == 0 {
            return Err(Error::NotAnArtifact { path: path.to_path_buf() });
        }
        // SAFETY: artifacts are replaced by renaming, never written or shortened in place, so the mapped bytes do not change.
        let map = MappedFile::new(unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?);
        let header = Header::decode(&map, path)?;
        let manifest = decode_manifest(&map, &header, path)?;
        let data = header.data_start..header.file_bytes;
        let checks = validate::model(&manifest).and_then(|()| validate::tensors(&manifest, &data));
        checks.map_err(|problem| Error::Manifest { path: path.to_path_buf(), problem })?;
        let index = manifest.tensors.iter().enumerate().map(|(index, tensor)| (tensor.key, index)).collect();
        let chunks = header.table().len() / 4;
        let checked = (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { path: path.to_path_buf(), file, map: Arc::new(map), header, manifest, index, checked })
    }

    /// Where the artifact was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the artifact says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.header.file_bytes
    }

    /// A number that identifies the contents: the checksums of the manifest and of the chunk table.
    pub fn id(&self) -> u64 {
        u64::from(self.header.manifest_crc) << 32 | u64::from(self.header.table_crc)
    }

    /// Where the tensor `key` lies, or none where the model has no such tensor.
    pub fn find(&self, key: TensorKey) -> Option<&StoredTensor> {
        self.index.get(&key).map(|&index| &self.manifest.tensors[index])
    }

    /// The whole file's bytes.
    pub fn map(&self) -> Arc<MappedFile> {
        Arc::clone(&self.map)
    }

    /// Checks that every page that was touched could be read, where the program replaces others ([`replace_page`]), and that the file is as
    /// long as it was: behind the end of a shortened one its last page reads as zeros, without a fault. To be asked after each use of
    /// [`map`](Self::map).
    ///
    /// # Errors
    /// [`Error::Unreadable`].
    pub fn check_pages(&self) -> Result<()> {
        let length = rustix::fs::fstat(&self.file).map(|stat| stat.st_size);
        let whole = length.is_ok_and(|length| u64::try_from(length) == Ok(self.header.file_bytes));
        if whole && self.map.lost_pages() == 0 { Ok(()) } else { Err(Error::Unreadable { path: self.path.clone() }) }
    }

    /// The bytes of `tensor` in [`map`](Self::map).
    pub fn range(&self, tensor: &StoredTensor) -> Range<usize> {
        let start = usize::try_from(tensor.offset).unwrap_or(usize::MAX);
        start..start.saturating_add(usize::try_from(tensor.bytes).unwrap_or(usize::MAX))
    }

    /// Bytes that the first `rows` rows of `tensor` occupy; at most all rows.
    pub fn prefix_bytes(&self, tensor: &StoredTensor, rows: usize) -> usize {
        format_of(tensor).prefix_bytes(rows)
    }

    /// Compares the checksums of the chunks that `tensor` touches and that have not been compared yet.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the first chunk that does not fit, [`Error::Unreadable`].
    pub fn check(&self, tensor: &StoredTensor) -> Result<()> {
        self.check_range(self.range(tensor))
    }

    /// Compares the checksums of the chunks that `range`, bytes of the file, touches and that have not been compared yet.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the first chunk that does not fit, or that the range leaves the data.
    pub fn check_range(&self, range: Range<usize>) -> Result<()> {
        let data_start = self.header.data_start as usize;
        if range.start < data_start || range.end > self.map.len() {
            return Err(Error::damaged(&self.path, format!("bytes {range:?} lie outside its data, {data_start}..{}", self.map.len())));
        }
        if range.is_empty() {
            return Ok(());
        }
        self.check_pages()?;
        for chunk in (range.start - data_start) / CHUNK_BYTES..=(range.end - 1 - data_start) / CHUNK_BYTES {
            let (word, bit) = (&self.checked[chunk / 64], 1 << (chunk % 64));
            // Relaxed: the bit guards no other memory. Two threads may compare the same chunk, which is harmless.
            if word.load(Ordering::Relaxed) & bit == 0 {
                self.compare_chunk(chunk)?;
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// How many chunks have been compared since the artifact was opened, and how many it has.
    pub fn chunks_checked(&self) -> (usize, usize) {
        let checked = self.checked.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum();
        (checked, self.header.table().len() / 4)
    }

    /// Reads the whole data region: compares every chunk's checksum, whether or not it was compared before, and that what lies between
    /// the tensors is zero.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the first chunk or byte that does not fit.
    pub fn verify(&self) -> Result<()> {
        for chunk in 0..self.header.table().len() / 4 {
            self.compare_chunk(chunk)?;
            self.checked[chunk / 64].fetch_or(1 << (chunk % 64), Ordering::Relaxed);
        }
        let mut end = self.header.data_start as usize;
        for range in self.used() {
            self.expect_zeros(end..range.start.max(end))?;
            end = end.max(range.end);
        }
        self.expect_zeros(end..self.map.len())
    }

    /// The vector `key` as f32.
    ///
    /// # Errors
    /// [`Error::NoTensor`], [`Error::Damaged`], or [`Error::Request`] where the tensor is a matrix.
    pub fn vector(&self, key: TensorKey) -> Result<Vec<f32>> {
        let tensor = self.require(key)?;
        if tensor.rows != 1 {
            return Err(Error::request(key, format!("a matrix of {} rows was asked for as a vector", tensor.rows)));
        }
        // The length was checked at open: it is at most the file's.
        let mut values = vec![0.0; tensor.columns as usize];
        self.read_rows(key, 0..1, &mut values)?;
        Ok(values)
    }

    /// Decodes the rows `rows` of the tensor `key`, whatever its format, to `out [rows, columns]`, after the chunks have been checked.
    ///
    /// # Errors
    /// [`Error::NoTensor`], [`Error::Damaged`], or [`Error::Request`] where rows or `out` do not fit.
    pub fn read_rows(&self, key: TensorKey, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let tensor = self.require(key)?;
        let (format, range) = (format_of(tensor), self.range(tensor));
        if rows.start <= rows.end && rows.end <= format.rows {
            let touched = format.touched(&rows);
            self.check_range(range.start + touched.start..range.start + touched.end)?;
        }
        format.decode_rows(&self.map[range], rows, out).map_err(|problem| Error::request(key, problem))?;
        self.check_pages()
    }

    /// The raw `tokenizer.json`, after its chunks have been checked; none for a model without one.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn tokenizer(&self) -> Result<Option<&[u8]>> {
        let Some(span) = self.manifest.tokenizer else { return Ok(None) };
        let range = span_range(span);
        self.check_range(range.clone())?;
        Ok(Some(&self.map[range]))
    }

    /// Takes the whole pages of `range` out of this process, so that they no longer count as its working set; they stay in the page cache,
    /// where the system may take them. For weights that are needed again soon.
    ///
    /// # Errors
    /// The system refused.
    pub fn unmap_pages(&self, range: Range<usize>) -> Result<()> {
        self.drop_pages(range).map(drop)
    }

    /// Gives the whole pages inside `range`, bytes of the file, back to the system; a later use reads them again.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses.
    pub fn release(&self, range: Range<usize>) -> Result<()> {
        let Some((start, length)) = self.drop_pages(range)? else { return Ok(()) };
        rustix::fs::fadvise(&self.file, start, Some(length), rustix::fs::Advice::DontNeed)
            .map_err(|error| Error::io("give back cached pages of", &self.path)(error.into()))
    }

    /// Drops the whole pages of `range` from the mapping; returns where they lie in the file.
    fn drop_pages(&self, range: Range<usize>) -> Result<Option<(u64, NonZeroU64)>> {
        let page = rustix::param::page_size();
        let start = range.start.min(self.map.len()).next_multiple_of(page);
        // The page that holds the end of the file is whole when the range ends there.
        let end = if range.end >= self.map.len() { self.map.len() } else { range.end / page * page };
        let Some(length) = end.checked_sub(start).and_then(|length| NonZeroU64::new(length as u64)) else { return Ok(None) };
        // SAFETY: the mapping is shared, read-only and backed by the file; a dropped page is read again with the same bytes, or lost as any
        // other page may be.
        unsafe { self.map.map().unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) }
            .map_err(Error::io("give back pages of", &self.path))?;
        Ok(Some((start as u64, length)))
    }

    /// The tensor `key`, or the error that there is none.
    fn require(&self, key: TensorKey) -> Result<&StoredTensor> {
        self.find(key).ok_or_else(|| Error::NoTensor { path: self.path.clone(), key })
    }

    /// Compares one chunk's checksum.
    fn compare_chunk(&self, chunk: usize) -> Result<()> {
        let start = self.header.data_start as usize + chunk * CHUNK_BYTES;
        let end = start.saturating_add(CHUNK_BYTES).min(self.map.len());
        let entry = &self.map[self.header.table()][chunk * 4..][..4];
        let fits = crc32c::crc32c(&self.map[start..end]).to_le_bytes() == entry;
        self.check_pages()?;
        if fits {
            return Ok(());
        }
        let tensor = self.manifest.tensors.iter().find(|tensor| self.range(tensor).end > start);
        let place = tensor.map(|tensor| format!(" (`{}` and what follows)", tensor.key)).unwrap_or_default();
        Err(Error::damaged(&self.path, format!("the checksum of bytes {start}..{end}{place} does not fit")))
    }

    /// What the manifest gives a meaning to: byte ranges in ascending order, levels' data included.
    fn used(&self) -> Vec<Range<usize>> {
        let mut used: Vec<_> = self.manifest.tensors.iter().map(|tensor| self.range(tensor)).collect();
        used.extend(self.manifest.tokenizer.map(span_range));
        for level in &self.manifest.levels {
            used.extend(level.overrides.iter().map(|tensor| self.range(tensor)));
            let sides = level.adapters.iter().flat_map(|adapter| adapter.unit_sides.iter().chain([&adapter.model_side]));
            used.extend(sides.map(|side| span_range(*side)));
        }
        used.sort_by_key(|range| range.start);
        used
    }

    /// Checks that the bytes of a gap are zero.
    fn expect_zeros(&self, gap: Range<usize>) -> Result<()> {
        match self.map[gap.clone()].iter().position(|&byte| byte != 0) {
            Some(at) => Err(Error::damaged(&self.path, format!("byte {} lies between tensors and is not zero", gap.start + at))),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifact").field("path", &self.path).field("id", &format_args!("{:016x}", self.id())).finish_non_exhaustive()
    }
}

impl TensorSource for Artifact {
    fn rows(&self, key: TensorKey, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.read_rows(key, rows, out)
    }

    fn contains(&self, key: TensorKey) -> bool {
        self.find(key).is_some()
    }

    fn tokenizer(&self) -> Result<Option<&[u8]>> {
        self.tokenizer()
    }
}

/// A span that was checked at open, as a range of the map.
fn span_range(span: Span) -> Range<usize> {
    span.offset as usize..(span.offset + span.bytes) as usize
}

/// The format of a stored tensor.
fn format_of(tensor: &StoredTensor) -> Format {
    Format { dtype: tensor.dtype, layout: tensor.layout, rows: tensor.rows as usize, columns: tensor.columns as usize }
}

/// Compares the checksums of manifest and table, checks the zeros behind them, and decodes the manifest.
fn decode_manifest(map: &[u8], header: &Header, path: &Path) -> Result<Manifest> {
    let encoded = &map[header.manifest()];
    for (what, bytes, crc) in [("manifest", encoded, header.manifest_crc), ("chunk table", &map[header.table()], header.table_crc)] {
        if crc32c::crc32c(bytes) != crc {
            return Err(Error::damaged(path, format!("the checksum of its {what} does not fit")));
        }
    }
    if let Some(at) = map[header.padding()].iter().position(|&byte| byte != 0) {
        return Err(Error::damaged(path, format!("byte {} lies before its data and is not zero", header.padding().start + at)));
    }
    match postcard::take_from_bytes::<Manifest>(encoded) {
        Ok((manifest, [])) => Ok(manifest),
        Ok((_, rest)) => Err(Error::Manifest { path: path.to_path_buf(), problem: format!("{} bytes follow its last entry", rest.len()) }),
        Err(error) => Err(Error::Manifest { path: path.to_path_buf(), problem: error.to_string() }),
    }
}
