//! Which codes a fat binary holds. The layout is that of the header fatbinary_section.h of the CUDA toolkit and of what its program
//! fatbinary writes: a header of 16 bytes (magic, version, own size, bytes of all entries), then entries, each a header of at least 64
//! bytes and its code, all little-endian.

/// One code of a fat binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// Machine code for a compute capability; it runs on those of the same major number and no lower minor number.
    Cubin {
        /// 10 · major + minor.
        architecture: u32,
    },
    /// PTX for a compute capability and later ones.
    Ptx {
        /// 10 · major + minor.
        architecture: u32,
    },
}

const MAGIC: u32 = 0xBA55_ED50;
const KIND_PTX: u16 = 1;
const KIND_ELF: u16 = 2;

/// The codes in `image`; none where it is no fat binary, or from where on it is cut short.
pub(crate) fn codes(image: &[u8]) -> Vec<Code> {
    let mut codes = Vec::new();
    if u32_at(image, 0) != Some(MAGIC) {
        return codes;
    }
    let Some(mut offset) = u16_at(image, 6).map(usize::from) else { return codes };
    while let Some((code, next)) = entry(image, offset) {
        codes.extend(code);
        offset = next;
    }
    codes
}

/// The code of the entry at `offset`, where its kind is known, and where the next entry begins.
fn entry(image: &[u8], offset: usize) -> Option<(Option<Code>, usize)> {
    let header = usize::try_from(u32_at(image, offset.checked_add(4)?)?).ok()?;
    let size = usize::try_from(u64_at(image, offset.checked_add(8)?)?).ok()?;
    let architecture = u32_at(image, offset.checked_add(28)?)?;
    let code = match u16_at(image, offset)? {
        KIND_ELF => Some(Code::Cubin { architecture }),
        KIND_PTX => Some(Code::Ptx { architecture }),
        _ => None,
    };
    let next = offset.checked_add(header)?.checked_add(size)?;
    (header >= 32 && next <= image.len()).then_some((code, next))
}

fn bytes_at<const N: usize>(image: &[u8], offset: usize) -> Option<[u8; N]> {
    image.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

fn u16_at(image: &[u8], offset: usize) -> Option<u16> {
    bytes_at(image, offset).map(u16::from_le_bytes)
}

fn u32_at(image: &[u8], offset: usize) -> Option<u32> {
    bytes_at(image, offset).map(u32::from_le_bytes)
}

fn u64_at(image: &[u8], offset: usize) -> Option<u64> {
    bytes_at(image, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A fat binary with one byte in each code.
    pub(crate) fn fatbin(codes: &[Code]) -> Vec<u8> {
        let mut entries = Vec::new();
        for code in codes {
            let (kind, architecture) = match *code {
                Code::Cubin { architecture } => (KIND_ELF, architecture),
                Code::Ptx { architecture } => (KIND_PTX, architecture),
            };
            let mut header = [0; 64];
            header[0..2].copy_from_slice(&kind.to_le_bytes());
            header[4..8].copy_from_slice(&64u32.to_le_bytes());
            header[8..16].copy_from_slice(&8u64.to_le_bytes());
            header[28..32].copy_from_slice(&architecture.to_le_bytes());
            entries.extend_from_slice(&header);
            entries.extend_from_slice(&[1; 8]);
        }
        let mut image = MAGIC.to_le_bytes().to_vec();
        image.extend_from_slice(&[1, 0, 16, 0]);
        image.extend_from_slice(&(entries.len() as u64).to_le_bytes());
        image.extend_from_slice(&entries);
        image
    }

    #[test]
    fn codes_are_found_in_order_and_kinds_that_are_not_known_passed_over() {
        let all = [Code::Cubin { architecture: 80 }, Code::Ptx { architecture: 80 }, Code::Cubin { architecture: 121 }];
        let mut image = fatbin(&all);
        assert_eq!(codes(&image), all);
        image[16..18].copy_from_slice(&16u16.to_le_bytes());
        assert_eq!(codes(&image), all[1..]);
    }

    #[test]
    fn no_image_that_is_cut_short_or_overflows_is_read_past_its_end() {
        let image = fatbin(&[Code::Cubin { architecture: 80 }, Code::Cubin { architecture: 90 }]);
        for length in 0..image.len() {
            assert!(codes(&image[..length]).len() < 2, "{length} bytes");
        }
        for field in [20..24, 24..32] {
            let mut broken = image.clone();
            broken[field.clone()].fill(0xff);
            assert_eq!(codes(&broken), [], "{field:?}");
        }
        let mut endless = image.clone();
        endless[20..32].fill(0);
        assert_eq!(codes(&endless), []);
        assert_eq!(codes(b"\x7fELF, but no fat binary"), []);
    }
}
