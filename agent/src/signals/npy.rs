//! NumPy `.npy` files: one vector of numbers, `[n]`, `[n, 1]` or `[1, n]`, as `<f4`, `<f8`, `<i2` or `<i4`.
//!
//! After NEP 1 (numpy.org/neps/nep-0001-npy-format.html): magic, version, header length, a Python dictionary as text, then the numbers.
//! Own code, because a vector of four number types needs neither a Python literal parser nor an array crate, and because the length that
//! the header claims must not decide how much memory is taken.

use std::io::{self, Read, Write};
use std::path::Path;

use super::error::SignalError;
use super::recording::{Summary, check_count};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header. NumPy's own for a vector is 118 bytes.
const MAX_HEADER_BYTES: usize = 64 * 1024;
const PIECE_BYTES: usize = 64 * 1024;
const RESAVE: &str = "save it again with `numpy.save(path, signal.astype('<f4'))`";

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    number: Number,
    count: usize,
    /// Where the numbers start, in bytes.
    data: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    F4,
    F8,
    I2,
    I4,
}

/// How many samples a file has, from its header alone.
pub fn summary(mut reader: impl Read, path: &Path) -> Result<Summary, SignalError> {
    let header = read_header(&mut reader, path)?;
    Ok(Summary { signal: None, samples: header.count, sample_rate_hz: None, rpm: None })
}

/// The samples of a file.
pub fn read(mut reader: impl Read, path: &Path) -> Result<Vec<f32>, SignalError> {
    let header = read_header(&mut reader, path)?;
    match header.number {
        Number::F4 => numbers(reader, path, &header, f32::from_le_bytes),
        Number::F8 => numbers(reader, path, &header, |bytes| f64::from_le_bytes(bytes) as f32),
        Number::I2 => numbers(reader, path, &header, |bytes| f32::from(i16::from_le_bytes(bytes))),
        Number::I4 => numbers(reader, path, &header, |bytes| i32::from_le_bytes(bytes) as f32),
    }
}

/// Writes a vector as `<f4`, version 1, the data starting at a multiple of 64 bytes as NumPy does.
pub fn write(mut writer: impl Write, samples: &[f32]) -> io::Result<()> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", samples.len());
    let before = MAGIC.len() + 4;
    while !(before + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    writer.write_all(MAGIC)?;
    writer.write_all(&[1, 0])?;
    // A vector's header is shorter than 256 bytes.
    writer.write_all(&(header.len() as u16).to_le_bytes())?;
    writer.write_all(header.as_bytes())?;
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    for samples in samples.chunks(PIECE_BYTES / 4) {
        piece.clear();
        piece.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
        writer.write_all(&piece)?;
    }
    writer.flush()
}

fn numbers<const SIZE: usize>(
    mut reader: impl Read,
    path: &Path,
    header: &Header,
    convert: fn([u8; SIZE]) -> f32,
) -> Result<Vec<f32>, SignalError> {
    let mut values: Vec<f32> = Vec::new();
    let mut piece = vec![0u8; PIECE_BYTES];
    while values.len() < header.count {
        let wanted = (header.count - values.len()).min(PIECE_BYTES / SIZE);
        let piece = &mut piece[..wanted * SIZE];
        match reader.read_exact(piece) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let place = format!("byte {}", header.data + (values.len() * SIZE) as u64);
                let expected = format!("{} numbers of {SIZE} bytes from byte {}", header.count, header.data);
                return Err(SignalError::malformed(
                    path,
                    place,
                    "the file ends within the next 64 KiB",
                    expected,
                    "copy the file again from its source",
                ));
            }
            Err(error) => return Err(SignalError::io(path, "read")(error)),
        }
        values.extend(piece.chunks_exact(SIZE).map(|bytes| convert(bytes.try_into().unwrap_or([0; SIZE]))));
    }
    Ok(values)
}

fn read_header(reader: &mut impl Read, path: &Path) -> Result<Header, SignalError> {
    let short = |place: &str| SignalError::malformed(path, place, "the file ends here", "a NumPy header", RESAVE);
    let mut fixed = [0u8; 8];
    reader.read_exact(&mut fixed).map_err(|_| short("byte 0"))?;
    if !fixed.starts_with(MAGIC) {
        return Err(SignalError::malformed(path, "byte 0", format!("the bytes {:02x?}", &fixed[..6]), "NumPy's magic \\x93NUMPY", RESAVE));
    }
    let (length, before) = match fixed[6] {
        1 => {
            let mut bytes = [0u8; 2];
            reader.read_exact(&mut bytes).map_err(|_| short("byte 8"))?;
            (u64::from(u16::from_le_bytes(bytes)), 10)
        }
        2 | 3 => {
            let mut bytes = [0u8; 4];
            reader.read_exact(&mut bytes).map_err(|_| short("byte 8"))?;
            (u64::from(u32::from_le_bytes(bytes)), 12)
        }
        version => return Err(SignalError::malformed(path, "byte 6", format!("version {version}"), "version 1, 2 or 3", RESAVE)),
    };
    if length > MAX_HEADER_BYTES as u64 {
        return Err(SignalError::malformed(
            path,
            "byte 8",
            format!("a header of {length} bytes"),
            format!("at most {MAX_HEADER_BYTES} bytes"),
            RESAVE,
        ));
    }
    let mut text = vec![0u8; length as usize];
    reader.read_exact(&mut text).map_err(|_| short("byte 10"))?;
    let bad = |problem: String| {
        let expected =
            "{'descr': '<f4', 'fortran_order': False, 'shape': (n,)} with one of <f4 <f8 <i2 <i4 and one dimension longer than 1";
        SignalError::malformed(path, "header", problem, expected, RESAVE)
    };
    let text = str::from_utf8(&text).map_err(|_| bad("a header that is not text".into()))?;
    let (descr, shape) = parse_dictionary(text).map_err(&bad)?;
    let number = match descr.as_str() {
        "<f4" => Number::F4,
        "<f8" => Number::F8,
        "<i2" => Number::I2,
        "<i4" => Number::I4,
        _ => return Err(bad(format!("numbers of type `{descr}`"))),
    };
    // The order of a vector is the same in C and Fortran, so `fortran_order` does not matter once all but one dimension are 1.
    let count = match shape.as_slice() {
        [n] | [n, 1] | [1, n] => check_count(path, *n)?,
        _ => return Err(bad(format!("the shape {shape:?}"))),
    };
    Ok(Header { number, count, data: length + before })
}

/// `descr` and `shape` of a header; the keys may come in any order, each exactly once.
fn parse_dictionary(text: &str) -> Result<(String, Vec<u64>), String> {
    let mut scan = Scan { rest: text };
    scan.expect("{")?;
    let (mut descr, mut order, mut shape) = (None, None, None);
    while !scan.take("}") {
        let key = scan.quoted()?;
        scan.expect(":")?;
        match key.as_str() {
            "descr" if descr.is_none() => descr = Some(scan.quoted()?),
            "fortran_order" if order.is_none() => order = Some(scan.boolean()?),
            "shape" if shape.is_none() => shape = Some(scan.tuple()?),
            _ => return Err(format!("an unexpected key `{key}`")),
        }
        if !scan.take(",") {
            scan.expect("}")?;
            break;
        }
    }
    match (descr, order, shape) {
        (Some(descr), Some(_), Some(shape)) if scan.rest.trim().is_empty() => Ok((descr, shape)),
        _ => Err("a header with something missing or left over".to_string()),
    }
}

struct Scan<'a> {
    rest: &'a str,
}

impl Scan<'_> {
    fn take(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.take(token) { Ok(()) } else { Err(format!("no `{token}` before `{}`", self.rest.chars().take(20).collect::<String>())) }
    }

    fn quoted(&mut self) -> Result<String, String> {
        let quote = if self.take("'") { '\'' } else { self.expect("\"").map(|()| '"')? };
        let (inside, rest) = self.rest.split_once(quote).ok_or("an open quote")?;
        let inside = inside.to_string();
        self.rest = rest;
        Ok(inside)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        if self.take("True") { Ok(true) } else { self.expect("False").map(|()| false) }
    }

    fn tuple(&mut self) -> Result<Vec<u64>, String> {
        self.expect("(")?;
        let mut values = Vec::new();
        while !self.take(")") {
            let rest = self.rest.trim_start();
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, rest) = rest.split_at(digits);
            values.push(number.parse().map_err(|_| format!("a dimension `{}`", number.chars().take(24).collect::<String>()))?);
            self.rest = rest;
            if values.len() > 32 {
                return Err("more than 32 dimensions".to_string());
            }
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(values)
    }
}
