//! Files that have their name when they are complete, and not before.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::artifact::folder;
use crate::error::{Error, Result};

/// Puts a file in the place `out` at once: `write` fills one beside it, which goes where anything fails.
///
/// # Errors
/// [`Error::Io`], and what `write` returns.
pub(super) fn place_file(out: &Path, write: impl FnOnce(&mut NamedTempFile) -> Result<()>) -> Result<()> {
    // Like any new file: readable as the process's umask allows.
    let rights = std::fs::Permissions::from_mode(0o666);
    let folder = folder(out);
    let temporary = tempfile::Builder::new().prefix(".export").suffix(".part").permissions(rights).tempfile_in(folder);
    let mut temporary = temporary.map_err(Error::io("create a file beside", out))?;
    write(&mut temporary)?;
    temporary.as_file().sync_all().map_err(Error::io("write", out))?;
    temporary.persist(out).map_err(|error| Error::io("rename a finished file to", out)(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("make durable", folder))
}
