//! Lists the files of a ZIP archive that stores them as they are, which is how PyTorch writes checkpoints.
//!
//! Read from the end (PKWARE's APPNOTE 6.3, sections 4.3 and 4.5): the end record, its 64-bit form where there is one, the central
//! directory, and every file's own header. All arithmetic is checked and every range lies inside the archive. Compression, encryption and
//! archives over several disks are refused. Checksums are not compared: PyTorch can write archives without them.

use std::collections::BTreeMap;
use std::ops::Range;

/// The most files in an archive; each takes at least 76 bytes of it.
const MAX_ENTRIES: u64 = 200_000;
/// The longest name of a file.
const MAX_NAME_BYTES: usize = 4096;

const END_SIGNATURE: u32 = 0x0605_4b50;
const END_BYTES: usize = 22;
const END64_SIGNATURE: u32 = 0x0606_4b50;
const END64_LOCATOR_SIGNATURE: u32 = 0x0706_4b50;
const END64_LOCATOR_BYTES: usize = 20;
const CENTRAL_SIGNATURE: u32 = 0x0201_4b50;
const CENTRAL_BYTES: usize = 46;
const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
const LOCAL_BYTES: usize = 30;
/// The extra field with the sizes and offsets that do not fit 32 bits.
const ZIP64_EXTRA: u16 = 1;
/// Flag: the file's bytes are encrypted.
const ENCRYPTED: u16 = 1;

/// The first bytes of every archive with a file in it.
pub(super) const MAGIC: [u8; 4] = LOCAL_SIGNATURE.to_le_bytes();

/// Where the central directory lies.
struct Directory {
    range: Range<usize>,
    entries: u64,
}

/// The bytes of every file of `archive`, by name.
///
/// # Errors
/// What is wrong with the archive, as a clause that follows its path.
pub(super) fn entries(archive: &[u8]) -> Result<BTreeMap<String, Range<usize>>, String> {
    let directory = directory(archive)?;
    let mut files = BTreeMap::new();
    let mut rest = &archive[directory.range.clone()];
    for number in 0..directory.entries {
        let (name, data, length) = entry(archive, rest, directory.range.start)
            .map_err(|problem| format!("file {number} of {} in the archive: {problem}", directory.entries))?;
        rest = &rest[length..];
        if files.insert(name.clone(), data).is_some() {
            return Err(format!("the archive has the file `{name}` twice"));
        }
    }
    if !rest.is_empty() {
        return Err(format!("the archive's directory has {} bytes after its {} files", rest.len(), directory.entries));
    }
    Ok(files)
}

/// Finds the central directory.
fn directory(archive: &[u8]) -> Result<Directory, String> {
    const MISSING: &str = "it does not end as a ZIP archive does; the file was cut off, copy it again";
    let latest = archive.len().checked_sub(END_BYTES).ok_or(MISSING)?;
    let earliest = latest.saturating_sub(usize::from(u16::MAX));
    let is_end = |&at: &usize| {
        u32_at(archive, at) == Some(END_SIGNATURE) && u16_at(archive, at + 20).is_some_and(|comment| usize::from(comment) == latest - at)
    };
    let end = (earliest..=latest).rev().find(is_end).ok_or(MISSING)?;
    let short = || -> Option<(u64, u64, u64, u32)> {
        let disks = u32::from(u16_at(archive, end + 4)?) | u32::from(u16_at(archive, end + 6)?);
        let (size, offset) = (u32_at(archive, end + 12)?, u32_at(archive, end + 16)?);
        Some((u16_at(archive, end + 10)?.into(), size.into(), offset.into(), disks))
    };
    let locator = end.checked_sub(END64_LOCATOR_BYTES).filter(|&at| u32_at(archive, at) == Some(END64_LOCATOR_SIGNATURE));
    let (found, before) = match locator {
        Some(locator) => (end64(archive, locator), locator),
        None => (short(), end),
    };
    let (entries, size, offset, disks) = found.ok_or("its 64-bit end record is not where the archive says; copy the file again")?;
    if disks != 0 {
        return Err("it is part of a ZIP archive over several disks; give the whole archive".to_string());
    }
    if entries > MAX_ENTRIES {
        return Err(format!("its archive lists {entries} files; at most {MAX_ENTRIES} are allowed"));
    }
    let range = range(offset, size).filter(|range| range.end <= before);
    let range = range.ok_or_else(|| format!("its archive's directory, {size} bytes at {offset}, is not inside the file; copy it again"))?;
    Ok(Directory { range, entries })
}

/// The 64-bit end record: files, directory bytes, directory offset and the disk numbers.
fn end64(archive: &[u8], locator: usize) -> Option<(u64, u64, u64, u32)> {
    let disks = u32_at(archive, locator + 4)?;
    let at = usize::try_from(u64_at(archive, locator + 8)?).ok().filter(|&at| at < locator)?;
    if u32_at(archive, at)? != END64_SIGNATURE || at.checked_add(56)? > locator {
        return None;
    }
    let disks = disks | u32_at(archive, at + 16)? | u32_at(archive, at + 20)?;
    Some((u64_at(archive, at + 32)?, u64_at(archive, at + 40)?, u64_at(archive, at + 48)?, disks))
}

/// The first entry of `directory`: the file's name, its bytes in `archive`, all before `limit`, and the length of the entry.
fn entry(archive: &[u8], directory: &[u8], limit: usize) -> Result<(String, Range<usize>, usize), String> {
    const ENDS: &str = "its entry in the directory is cut off";
    if u32_at(directory, 0).ok_or(ENDS)? != CENTRAL_SIGNATURE {
        return Err("its entry in the directory does not start as one".to_string());
    }
    let at16 = |at: usize| u16_at(directory, at).ok_or(ENDS);
    let at32 = |at: usize| u32_at(directory, at).ok_or(ENDS);
    let (flags, method) = (at16(8)?, at16(10)?);
    let (name_bytes, extra_bytes, comment_bytes) = (usize::from(at16(28)?), usize::from(at16(30)?), usize::from(at16(32)?));
    let length = CENTRAL_BYTES + name_bytes + extra_bytes + comment_bytes;
    if directory.len() < length {
        return Err(ENDS.to_string());
    }
    let raw_name = &directory[CENTRAL_BYTES..CENTRAL_BYTES + name_bytes];
    let name = std::str::from_utf8(raw_name).map_err(|_| "its name is not UTF-8 text")?.to_string();
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("its name has {} bytes; at most {MAX_NAME_BYTES} are allowed", name.len()));
    }
    if flags & ENCRYPTED != 0 {
        return Err(format!("`{name}` is encrypted; write the checkpoint again without"));
    }
    if method != 0 {
        return Err(format!(
            "`{name}` is compressed (method {method}), as in TorchScript programs or archives packed again; write the state_dict with torch.save"
        ));
    }
    let extra = &directory[CENTRAL_BYTES + name_bytes..][..extra_bytes];
    let (size, compressed, offset) = sizes(at32(24)?, at32(20)?, at32(42)?, extra).ok_or("its 64-bit sizes are missing")?;
    if size != compressed {
        return Err(format!("`{name}` has {size} bytes, but {compressed} are stored"));
    }
    let data = local_data(archive, offset, size, raw_name).filter(|data| data.end <= limit);
    let data = data.ok_or_else(|| format!("`{name}`, {size} bytes at {offset}, is not where the directory says; copy the file again"))?;
    Ok((name, data, length))
}

/// Size, stored size and offset of a file, from the 64-bit extra field where the 32-bit ones are all ones.
fn sizes(size: u32, compressed: u32, offset: u32, extra: &[u8]) -> Option<(u64, u64, u64)> {
    let mut wide = extra_field(extra, ZIP64_EXTRA).unwrap_or_default();
    let mut widen = |short: u32| {
        if short != u32::MAX {
            return Some(u64::from(short));
        }
        let value = u64_at(wide, 0)?;
        wide = &wide[8..];
        Some(value)
    };
    Some((widen(size)?, widen(compressed)?, widen(offset)?))
}

/// The contents of the extra field `id`.
fn extra_field(mut extra: &[u8], id: u16) -> Option<&[u8]> {
    loop {
        let (found, length) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
        let contents = extra.get(4..4 + length)?;
        if found == id {
            return Some(contents);
        }
        extra = &extra[4 + length..];
    }
}

/// The bytes of the file whose own header is at `offset`; none where the header is not there or names another file.
fn local_data(archive: &[u8], offset: u64, size: u64, name: &[u8]) -> Option<Range<usize>> {
    let at = usize::try_from(offset).ok()?;
    let header = archive.get(at..)?;
    if u32_at(header, 0)? != LOCAL_SIGNATURE || usize::from(u16_at(header, 26)?) != name.len() {
        return None;
    }
    if header.get(LOCAL_BYTES..LOCAL_BYTES + name.len())? != name {
        return None;
    }
    let start = at + LOCAL_BYTES + name.len() + usize::from(u16_at(header, 28)?);
    range(start as u64, size).filter(|range| range.end <= archive.len())
}

/// `bytes` bytes from `start` on, none where that does not fit an address.
fn range(start: u64, bytes: u64) -> Option<Range<usize>> {
    Some(usize::try_from(start).ok()?..usize::try_from(start.checked_add(bytes)?).ok()?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}
