//! Codes that were compiled on this machine, kept on disk: each in a file of its own, so that a start compiles once.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file is this, the CRC32C of the code (little-endian), and the code.
const MAGIC: [u8; 8] = *b"ESPCODE1";
const HEADER_BYTES: usize = MAGIC.len() + 4;
/// No code of these kernels comes near; a larger file is not one of ours.
const LARGEST_BYTES: u64 = 64 << 20;

/// Where codes are kept: ESPALIER_CACHE, or `espalier` in XDG_CACHE_HOME, or in .cache of HOME; nowhere where none is set to an absolute
/// path (XDG Base Directory Specification).
pub(crate) fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    path("ESPALIER_CACHE")
        .or_else(|| path("XDG_CACHE_HOME").map(|path| path.join("espalier")))
        .or_else(|| path("HOME").map(|path| path.join(".cache/espalier")))
}

/// The code in `folder` under `name`; none where there is none.
///
/// # Errors
/// Where the file cannot be read or is broken; it is to be written again.
pub(crate) fn read(folder: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let path = folder.join(name);
    let size = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if size > LARGEST_BYTES {
        return Err(io::Error::other(format!("{size} bytes are more than any code has")));
    }
    let mut bytes = fs::read(&path)?;
    let header = bytes.get(..HEADER_BYTES).filter(|header| header.starts_with(&MAGIC));
    let Some(expected) = header.and_then(|header| header[MAGIC.len()..].try_into().ok()).map(u32::from_le_bytes) else {
        return Err(io::Error::other("it does not begin as a cached code does"));
    };
    bytes.drain(..HEADER_BYTES);
    if crc32c::crc32c(&bytes) != expected {
        return Err(io::Error::other("its CRC32C is not that of its bytes"));
    }
    Ok(Some(bytes))
}

/// Keeps `code` in `folder` under `name`; a reader sees the whole of it or what was there before.
///
/// # Errors
/// Where the folder or the file cannot be written.
pub(crate) fn write(folder: &Path, name: &str, code: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let temporary = folder.join(format!("{name}.{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let written = || -> io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&MAGIC)?;
        file.write_all(&crc32c::crc32c(code).to_le_bytes())?;
        file.write_all(code)?;
        file.sync_all()?;
        fs::rename(&temporary, folder.join(name))
    };
    written().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Variables, and the folder for them.
    type Case = (&'static [(&'static str, &'static str)], Option<&'static str>);

    #[test]
    fn the_folder_is_the_first_of_the_variables_that_is_an_absolute_path() {
        let cases: [Case; 6] = [
            (&[("ESPALIER_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")], Some("/a")),
            (&[("XDG_CACHE_HOME", "/b"), ("HOME", "/c")], Some("/b/espalier")),
            (&[("HOME", "/c")], Some("/c/.cache/espalier")),
            (&[("ESPALIER_CACHE", ""), ("HOME", "/c")], Some("/c/.cache/espalier")),
            (&[("XDG_CACHE_HOME", "relative"), ("HOME", "/c")], Some("/c/.cache/espalier")),
            (&[], None),
        ];
        let wrong: Vec<_> = cases
            .iter()
            .filter_map(|(variables, expected)| {
                let found = folder(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()));
                (found.as_deref() != expected.map(Path::new)).then_some((variables, expected, found))
            })
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn a_code_comes_back_as_it_was_kept() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("not/there/yet");
        assert_eq!(read(&folder, "code").unwrap(), None);
        write(&folder, "code", b"one").unwrap();
        write(&folder, "code", b"two").unwrap();
        write(&folder, "other", b"").unwrap();
        assert_eq!(read(&folder, "code").unwrap().unwrap(), b"two");
        assert_eq!(read(&folder, "other").unwrap().unwrap(), b"");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "temporary files are left");
    }

    #[test]
    fn a_broken_file_is_an_error_whatever_is_broken() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "code", b"machine code").unwrap();
        let path = root.path().join("code");
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(read(root.path(), "code").is_err(), "{length} bytes of it");
        }
        for place in 0..whole.len() {
            let mut broken = whole.clone();
            broken[place] ^= 1;
            fs::write(&path, broken).unwrap();
            assert!(read(root.path(), "code").is_err(), "byte {place}");
        }
        fs::File::create(&path).unwrap().set_len(LARGEST_BYTES + 1).unwrap();
        assert!(read(root.path(), "code").is_err(), "a file too large");
    }

    #[test]
    fn what_cannot_be_kept_is_an_error_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("code")).unwrap();
        assert!(write(root.path(), "code", b"code").is_err(), "a folder has the name");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        fs::write(root.path().join("file"), b"").unwrap();
        assert!(write(&root.path().join("file/below"), "code", b"code").is_err());
    }
}
