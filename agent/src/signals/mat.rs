//! MATLAB v5 files (`save` up to and with `-v7`): a directory of the arrays, and the samples of one of them.
//!
//! After The MathWorks, *MAT-File Format* (R2024): a header of 128 bytes, then data elements, each a tag (type, length) and a body padded to
//! 8 bytes; elements of up to 4 bytes share 8 bytes with their tag; an array may be a zlib stream. Read are real numeric arrays of every
//! storage type in both byte orders; cells, structures, texts and sparse arrays are passed over. Version 7.3 is HDF5 and refused.
//!
//! Own code, because the crates that exist (`matfile` 0.5, `matio-rs`) inflate a compressed array without a limit, hold the whole file in
//! memory, or bind a C library: here an array is streamed in pieces of 64 KiB, whatever its tags claim.

use std::fmt::Write as _;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::ZlibDecoder;

use super::error::SignalError;
use super::recording::check_count;

/// Most bytes that one compressed array may inflate to: what bounds a decompression bomb in time (memory is bounded by the samples).
pub const MAX_INFLATED_BYTES: u64 = 1 << 30;
/// Most elements of a file. A recording has a handful; the limit bounds the directory.
const MAX_ELEMENTS: usize = 10_000;
/// Longest name. MATLAB's own limit is 63.
const MAX_NAME_BYTES: u32 = 1024;
const MAX_DIMENSIONS: u32 = 32;
const HEADER_BYTES: u64 = 128;
const PIECE_BYTES: usize = 64 * 1024;

const MI_INT8: u32 = 1;
const MI_INT32: u32 = 5;
const MI_UINT32: u32 = 6;
const MI_MATRIX: u32 = 14;
const MI_COMPRESSED: u32 = 15;

const RECOPY: &str = "copy the file again from its source, or save it again with `save -v7`";

/// One array of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatArray {
    /// Its name; empty where the file gives none.
    pub name: String,
    /// Its dimensions; empty for kinds that have none.
    pub dims: Vec<u64>,
    /// Real, dense and numeric: what [`MatFile::read`] reads.
    pub readable: bool,
    /// Where its element starts, in bytes from the start of the file.
    offset: u64,
}

impl MatArray {
    /// Number of elements: the product of the dimensions, none if it overflows.
    pub fn count(&self) -> Option<u64> {
        self.dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim))
    }

    /// True for `[n, 1]`, `[1, n]` and their kin.
    pub fn is_vector(&self) -> bool {
        self.readable && self.count().is_some_and(|count| count > 0 && self.dims.contains(&count))
    }
}

/// An open file with its directory.
#[derive(Debug)]
pub struct MatFile<R> {
    reader: R,
    path: PathBuf,
    big_endian: bool,
    length: u64,
    arrays: Vec<MatArray>,
}

impl<R: Read + Seek> MatFile<R> {
    /// Reads the header and the directory; `path` is for messages.
    pub fn open(mut reader: R, path: &Path) -> Result<Self, SignalError> {
        let length = reader.seek(SeekFrom::End(0)).map_err(SignalError::io(path, "measure"))?;
        reader.rewind().map_err(SignalError::io(path, "read"))?;
        let big_endian = read_header(&mut reader, path)?;
        let mut file = Self { reader, path: path.to_path_buf(), big_endian, length, arrays: Vec::new() };
        let mut offset = HEADER_BYTES;
        let mut elements = 0;
        while offset < length {
            elements += 1;
            if elements > MAX_ELEMENTS {
                return Err(file.bad(offset, format!("element {elements}"), format!("at most {MAX_ELEMENTS} elements")));
            }
            let (array, next) = file.directory_entry(offset)?;
            file.arrays.extend(array);
            offset = next;
        }
        Ok(file)
    }

    /// The arrays in the order of the file.
    pub fn arrays(&self) -> &[MatArray] {
        &self.arrays
    }

    /// "X105_DE_time [121265, 1], X105RPM [1, 1]", for messages.
    pub fn listing(&self) -> String {
        let mut text = String::new();
        for array in self.arrays.iter().take(20) {
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}{} {:?}", array.name, array.dims);
        }
        match self.arrays.len() {
            0 => "no array".to_string(),
            n if n > 20 => format!("{text} and {} more", n - 20),
            _ => text,
        }
    }

    /// The elements of the array at `index` of the directory, in the file's (column-major) order, converted to f32.
    pub fn read(&mut self, index: usize) -> Result<Vec<f32>, SignalError> {
        let Some(array) = self.arrays.get(index).cloned() else {
            return Err(SignalError::NoSuchSignal { path: self.path.clone(), wanted: format!("array {index}"), found: self.listing() });
        };
        if !array.readable {
            return Err(SignalError::Unsupported {
                path: self.path.clone(),
                what: format!("array {}, which is not real, dense and numeric,", array.name),
                remedy: "save the signal as a plain vector of numbers",
            });
        }
        let count = check_count(&self.path, array.count().unwrap_or(u64::MAX))?;
        let path = self.path.clone();
        self.with_matrix(array.offset, |matrix| {
            matrix.header()?;
            matrix.numbers(count)
        })?
        .ok_or_else(|| SignalError::malformed(&path, format!("byte {}", array.offset), "no array", "an array", RECOPY))
    }

    /// The value of the 1×1 array `name`, if there is one.
    pub fn scalar(&mut self, name: &str) -> Result<Option<f64>, SignalError> {
        match self.arrays.iter().position(|array| array.name == name && array.readable && array.count() == Some(1)) {
            Some(index) => Ok(self.read(index)?.first().map(|value| f64::from(*value))),
            None => Ok(None),
        }
    }

    fn bad(&self, offset: u64, problem: impl Into<String>, expected: impl Into<String>) -> SignalError {
        SignalError::malformed(&self.path, format!("byte {offset}"), problem, expected, RECOPY)
    }

    /// The array at `offset`, if the element is one, and where the next element starts.
    fn directory_entry(&mut self, offset: u64) -> Result<(Option<MatArray>, u64), SignalError> {
        let (_, length, body) = self.top_tag(offset)?;
        let next = match body.checked_add(length) {
            Some(next) if next <= self.length => next,
            _ => {
                let expected = format!("at most the {} bytes that follow", self.length.saturating_sub(body));
                return Err(self.bad(offset, format!("an element of {length} bytes"), expected));
            }
        };
        let array = self.with_matrix(offset, |matrix| matrix.header())?;
        Ok((array.map(|(name, dims, readable)| MatArray { name, dims, readable, offset }), next))
    }

    /// Type, length and first body byte of the element at `offset`.
    fn top_tag(&mut self, offset: u64) -> Result<(u32, u64, u64), SignalError> {
        self.reader.seek(SeekFrom::Start(offset)).map_err(SignalError::io(&self.path, "read"))?;
        let mut stream =
            Stream { inner: &mut self.reader, left: 8, position: offset, big_endian: self.big_endian, path: &self.path, inflated: false };
        let (kind, length) = (stream.u32()?, stream.u32()?);
        if kind >> 16 != 0 {
            // A small element: length in the upper half of the type, body in the tag's second word.
            return Ok((kind & 0xFFFF, 0, offset.saturating_add(8)));
        }
        Ok((kind, u64::from(length), offset.saturating_add(8)))
    }

    /// Runs `work` on the body of the array at `offset`, inflated if need be; none if the element is no array.
    fn with_matrix<T>(
        &mut self,
        offset: u64,
        work: impl FnOnce(&mut Stream<'_>) -> Result<T, SignalError>,
    ) -> Result<Option<T>, SignalError> {
        let (kind, length, body) = self.top_tag(offset)?;
        let (big_endian, path) = (self.big_endian, self.path.as_path());
        match kind {
            MI_MATRIX => {
                let mut stream = Stream { inner: &mut self.reader, left: length, position: body, big_endian, path, inflated: false };
                work(&mut stream).map(Some)
            }
            MI_COMPRESSED => {
                let mut inflater = ZlibDecoder::new((&mut self.reader).take(length));
                let mut stream =
                    Stream { inner: &mut inflater, left: MAX_INFLATED_BYTES, position: body, big_endian, path, inflated: true };
                let (kind, length) = (stream.u32()?, stream.u32()?);
                if kind != MI_MATRIX {
                    return Ok(None);
                }
                if u64::from(length) > stream.left {
                    return Err(SignalError::TooLarge {
                        path: path.to_path_buf(),
                        what: "a compressed array",
                        found: format!("{length} bytes when inflated"),
                        limit: format!("{MAX_INFLATED_BYTES} bytes"),
                    });
                }
                stream.left = u64::from(length);
                work(&mut stream).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// Checks the 128-byte header and gives the byte order: true for big-endian.
fn read_header<R: Read>(reader: &mut R, path: &Path) -> Result<bool, SignalError> {
    let mut header = Vec::with_capacity(HEADER_BYTES as usize);
    reader.take(HEADER_BYTES).read_to_end(&mut header).map_err(SignalError::io(path, "read"))?;
    if header.starts_with(b"MATLAB 7.3") || header.starts_with(b"\x89HDF") {
        return Err(SignalError::Unsupported {
            path: path.to_path_buf(),
            what: "MATLAB 7.3 (HDF5)".to_string(),
            remedy: "save it again in MATLAB with `save -v7`",
        });
    }
    let expected = "a MATLAB v5 header of 128 bytes that ends in `MI` or `IM`";
    let (Some(version), Some(order)) = (header.get(124..126), header.get(126..128)) else {
        return Err(SignalError::malformed(path, "byte 0", format!("a file of {} bytes", header.len()), expected, RECOPY));
    };
    // The two characters `MI` are written as one 16-bit number in the writer's byte order.
    let (big_endian, version) = match (order, version) {
        (b"IM", &[low, high]) => (false, u16::from_le_bytes([low, high])),
        (b"MI", &[high, low]) => (true, u16::from_be_bytes([high, low])),
        _ => return Err(SignalError::malformed(path, "byte 126", format!("the bytes {order:02x?}"), expected, RECOPY)),
    };
    match version {
        0x0100 => Ok(big_endian),
        _ => Err(SignalError::Unsupported {
            path: path.to_path_buf(),
            what: format!("a MATLAB file of version {version:#06x}"),
            remedy: "save it again in MATLAB with `save -v7`",
        }),
    }
}

/// The body of one array, counted.
struct Stream<'a> {
    inner: &'a mut dyn Read,
    /// Bytes of the body that have not been read.
    left: u64,
    /// Where the next byte lies: in the file, or for an inflated stream the element's body.
    position: u64,
    big_endian: bool,
    path: &'a Path,
    inflated: bool,
}

struct Tag {
    kind: u32,
    length: u32,
    /// Bytes after the body up to the next element.
    padding: u32,
}

impl Stream<'_> {
    fn bad(&self, problem: impl Into<String>, expected: impl Into<String>) -> SignalError {
        let place = if self.inflated { format!("compressed element at byte {}", self.position) } else { format!("byte {}", self.position) };
        SignalError::malformed(self.path, place, problem, expected, RECOPY)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), SignalError> {
        let wanted = out.len() as u64;
        if wanted > self.left {
            return Err(self.bad(format!("the array ends after {} bytes", self.left), format!("{wanted} more bytes")));
        }
        match self.inner.read_exact(out) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.bad("the data end here", format!("{wanted} more bytes")));
            }
            Err(error) if self.inflated => return Err(self.bad(format!("a broken zlib stream ({error})"), "a whole zlib stream")),
            Err(error) => return Err(SignalError::io(self.path, "read")(error)),
        }
        self.left -= wanted;
        if !self.inflated {
            self.position = self.position.saturating_add(wanted);
        }
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, SignalError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn tag(&mut self) -> Result<Tag, SignalError> {
        let word = self.u32()?;
        let small = word >> 16;
        if small > 4 {
            return Err(self.bad(format!("a small element of {small} bytes"), "at most 4 bytes"));
        }
        if small > 0 {
            return Ok(Tag { kind: word & 0xFFFF, length: small, padding: 4 - small });
        }
        let length = self.u32()?;
        Ok(Tag { kind: word, length, padding: (8 - length % 8) % 8 })
    }

    /// The body of a small part of an array: flags, dimensions, name.
    fn part(&mut self, what: &str, kind: u32, limit: u32) -> Result<Vec<u8>, SignalError> {
        let tag = self.tag()?;
        if tag.kind != kind || tag.length > limit {
            let problem = format!("{what} of type {} and {} bytes", tag.kind, tag.length);
            return Err(self.bad(problem, format!("type {kind} and at most {limit} bytes")));
        }
        // At most a few hundred bytes: `limit` is one of this file's constants.
        let mut body = vec![0; tag.length as usize + tag.padding as usize];
        self.fill(&mut body)?;
        body.truncate(tag.length as usize);
        Ok(body)
    }

    fn words(&self, bytes: &[u8]) -> Vec<u32> {
        let word = |b: &[u8]| b.iter().enumerate().fold(0u32, |sum, (i, byte)| sum | u32::from(*byte) << (8 * i));
        bytes.chunks_exact(4).map(|b| if self.big_endian { word(b).swap_bytes() } else { word(b) }).collect()
    }

    /// Name, dimensions and whether it is real, dense and numeric.
    fn header(&mut self) -> Result<(String, Vec<u64>, bool), SignalError> {
        let flags = self.part("array flags", MI_UINT32, 8)?;
        let flags = self.words(&flags).first().copied().unwrap_or(0);
        let class = flags & 0xFF;
        if !(1..=15).contains(&class) {
            // Function handles and opaque objects have no dimensions.
            return Ok((String::new(), Vec::new(), false));
        }
        let dims = self.part("dimensions", MI_INT32, 4 * MAX_DIMENSIONS)?;
        let dims: Vec<u64> = self.words(&dims).into_iter().map(u64::from).collect();
        // i32 in the file: a negative one is over i32::MAX here.
        if dims.len() < 2 || dims.iter().any(|dim| *dim > i32::MAX as u64) {
            return Err(self.bad(format!("dimensions {dims:?}"), "two or more, none negative"));
        }
        let name = self.part("a name", MI_INT8, MAX_NAME_BYTES)?;
        let complex = flags & 0x0800 != 0;
        Ok((String::from_utf8_lossy(&name).into_owned(), dims, (6..=15).contains(&class) && !complex))
    }

    /// The real part: `count` numbers of any storage type.
    fn numbers(&mut self, count: usize) -> Result<Vec<f32>, SignalError> {
        let tag = self.tag()?;
        let Some((size, convert)) = storage(tag.kind, self.big_endian) else {
            return Err(self.bad(format!("numbers of storage type {}", tag.kind), "a numeric storage type"));
        };
        if u64::from(tag.length) != count as u64 * size as u64 {
            return Err(self.bad(format!("{} bytes of numbers", tag.length), format!("{count} numbers of {size} bytes")));
        }
        let mut values = Vec::new();
        let mut piece = vec![0u8; PIECE_BYTES];
        let mut left = tag.length as usize;
        while left > 0 {
            // PIECE_BYTES is a multiple of every storage size, so no number is cut.
            let bytes = left.min(PIECE_BYTES);
            let piece = &mut piece[..bytes];
            self.fill(piece)?;
            values.extend(piece.chunks_exact(size).map(convert));
            left -= bytes;
        }
        if self.inflated {
            // Reading to the end lets the decoder check the stream's Adler-32.
            let mut rest = [0; 16];
            while self.left > 0 {
                let bytes = self.left.min(16) as usize;
                self.fill(&mut rest[..bytes])?;
            }
            if let Err(error) = self.inner.read(&mut rest) {
                return Err(self.bad(format!("a broken zlib stream ({error})"), "a stream whose checksum fits"));
            }
        }
        Ok(values)
    }
}

type Convert = fn(&[u8]) -> f32;

/// Size in bytes and conversion of a numeric storage type.
fn storage(kind: u32, big_endian: bool) -> Option<(usize, Convert)> {
    macro_rules! of {
        ($number:ty) => {{
            const SIZE: usize = size_of::<$number>();
            let little: Convert = |bytes| <$number>::from_le_bytes(bytes.try_into().unwrap_or([0; SIZE])) as f32;
            let big: Convert = |bytes| <$number>::from_be_bytes(bytes.try_into().unwrap_or([0; SIZE])) as f32;
            Some((SIZE, if big_endian { big } else { little }))
        }};
    }
    match kind {
        MI_INT8 => of!(i8),
        2 => of!(u8),
        3 => of!(i16),
        4 => of!(u16),
        MI_INT32 => of!(i32),
        MI_UINT32 => of!(u32),
        7 => of!(f32),
        9 => of!(f64),
        12 => of!(i64),
        13 => of!(u64),
        _ => None,
    }
}
