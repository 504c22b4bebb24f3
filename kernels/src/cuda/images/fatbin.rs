//! Taking one code out of a fat binary, as it is read. The layout is that of fatbinary_section.h of the CUDA toolkit and of what its program
//! fatbinary writes: a header of 16 bytes (magic, version, own size, bytes of all entries), then entries, each a header of at least 64
//! bytes and its code, all little-endian.

use std::io::{self, Read};

/// One code of a fat binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// Machine code for an architecture (10 · major + minor of the compute capability); it runs on devices of the same major number and
    /// no lower minor number.
    Cubin(u32),
    /// PTX for an architecture and later ones, which the driver compiles.
    Ptx(u32),
}

impl Code {
    /// `sm_87`, `compute_80`: the name that compilers know.
    pub(crate) fn name(self) -> String {
        match self {
            Code::Cubin(architecture) => format!("sm_{architecture}"),
            Code::Ptx(architecture) => format!("compute_{architecture}"),
        }
    }
}

const MAGIC: u32 = 0xBA55_ED50;
const HEADER_BYTES: u64 = 16;
/// The part of an entry's header that is read.
const ENTRY_BYTES: u64 = 64;
const KIND_PTX: u16 = 1;
const KIND_ELF: u16 = 2;
/// No code of these kernels comes near.
const LARGEST_BYTES: u64 = 64 << 20;

/// Reads `image` up to the end of `code`, which it must hold uncompressed: machine code as it is, PTX as a text that ends in a zero byte.
///
/// # Errors
/// Where the image cannot be read, is no fat binary, or does not hold the code.
pub(crate) fn extract(mut image: impl Read, code: Code) -> io::Result<Vec<u8>> {
    let header: [u8; HEADER_BYTES as usize] = read(&mut image)?;
    if u32_at(&header, 0) != MAGIC {
        return Err(io::Error::other("it does not begin as a fat binary does"));
    }
    skip(&mut image, u64::from(u16_at(&header, 6)).saturating_sub(HEADER_BYTES))?;
    let mut left = u64_at(&header, 8);
    while left > 0 {
        let entry: [u8; ENTRY_BYTES as usize] = read(&mut image)?;
        let (header_bytes, bytes) = (u64::from(u32_at(&entry, 4)), u64_at(&entry, 8));
        let entry_bytes = header_bytes.checked_add(bytes).filter(|total| header_bytes >= ENTRY_BYTES && *total <= left);
        left -= entry_bytes.ok_or_else(|| io::Error::other("an entry of the fat binary is longer than the whole"))?;
        skip(&mut image, header_bytes - ENTRY_BYTES)?;
        let found = match u16_at(&entry, 0) {
            KIND_ELF => Some(Code::Cubin(u32_at(&entry, 28))),
            KIND_PTX => Some(Code::Ptx(u32_at(&entry, 28))),
            _ => None,
        };
        if found == Some(code) {
            return payload(image, code, bytes);
        }
        skip(&mut image, bytes)?;
    }
    Err(io::Error::other(format!("the fat binary has no {}", code.name())))
}

fn payload(image: impl Read, code: Code, bytes: u64) -> io::Result<Vec<u8>> {
    if bytes > LARGEST_BYTES {
        return Err(io::Error::other(format!("{} would have {bytes} bytes; {LARGEST_BYTES} are the most", code.name())));
    }
    let mut payload = Vec::new();
    image.take(bytes).read_to_end(&mut payload)?;
    if payload.len() as u64 != bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if let Code::Ptx(_) = code {
        payload.truncate(payload.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        payload.push(0);
    }
    Ok(payload)
}

fn read<const N: usize>(image: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    image.read_exact(&mut bytes).map(|()| bytes)
}

fn skip(image: &mut impl Read, bytes: u64) -> io::Result<()> {
    let skipped = io::copy(&mut image.take(bytes), &mut io::sink())?;
    if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fat binary of these codes: kind, architecture, bytes of the header, payload.
    fn fatbin(codes: &[(u16, u32, u32, &[u8])]) -> Vec<u8> {
        let mut entries = Vec::new();
        for &(kind, architecture, header_bytes, payload) in codes {
            let mut header = vec![0; header_bytes as usize];
            header[0..2].copy_from_slice(&kind.to_le_bytes());
            header[4..8].copy_from_slice(&header_bytes.to_le_bytes());
            header[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
            header[28..32].copy_from_slice(&architecture.to_le_bytes());
            entries.extend_from_slice(&header);
            entries.extend_from_slice(payload);
        }
        let mut image = MAGIC.to_le_bytes().to_vec();
        image.extend_from_slice(&[1, 0, 16, 0]);
        image.extend_from_slice(&(entries.len() as u64).to_le_bytes());
        image.extend_from_slice(&entries);
        image
    }

    fn sample() -> Vec<u8> {
        fatbin(&[
            (KIND_ELF, 80, 64, b"eighty"),
            (16, 80, 64, b"unknown kind"),
            (KIND_PTX, 80, 80, b"ptx\0\0"),
            (KIND_ELF, 121, 64, b"last"),
        ])
    }

    #[test]
    fn a_code_is_found_by_kind_and_architecture() {
        let image = sample();
        assert_eq!(extract(&image[..], Code::Cubin(80)).unwrap(), b"eighty");
        assert_eq!(extract(&image[..], Code::Ptx(80)).unwrap(), b"ptx\0");
        assert_eq!(extract(&image[..], Code::Cubin(121)).unwrap(), b"last");
        assert_eq!(extract(&image[..], Code::Cubin(90)).unwrap_err().to_string(), "the fat binary has no sm_90");
    }

    #[test]
    fn an_image_that_is_cut_short_or_lies_about_lengths_is_an_error() {
        let image = sample();
        for length in 0..image.len() {
            assert!(extract(&image[..length], Code::Cubin(121)).is_err(), "{length} bytes");
        }
        for (what, field, value) in
            [("all entries", 8..16, 0), ("a header", 20..24, 0), ("a header", 20..24, 0xff), ("a code", 24..32, 0xff)]
        {
            let mut broken = image.clone();
            broken[field].fill(value);
            assert!(extract(&broken[..], Code::Cubin(121)).is_err(), "the length of {what} is all {value}");
        }
        assert!(extract(&b"\x7fELF, but no fat binary"[..], Code::Cubin(121)).is_err());
    }
}
