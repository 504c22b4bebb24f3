//! Files that a command writes: refused early where they cannot be, and put in place at once.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{AgentError, Result, file_error};

/// The folder that a file is in.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Puts a finished artifact in its place at once: a copy beside it, then a rename.
pub fn publish(from: &Path, to: &Path) -> Result<()> {
    let folder = folder_of(to);
    let copy = || -> std::io::Result<()> {
        // Like any new file: readable as the process's umask allows.
        let rights = std::fs::Permissions::from_mode(0o666);
        let mut temporary = tempfile::Builder::new().permissions(rights).tempfile_in(folder)?;
        std::io::copy(&mut std::fs::File::open(from)?, temporary.as_file_mut())?;
        temporary.as_file().sync_all()?;
        temporary.persist(to).map_err(|error| error.error)?;
        std::fs::File::open(folder)?.sync_all()
    };
    copy().map_err(|error| file_error("cannot write", to, &error))
}

/// Refuses an output that cannot be written, before hours of work.
pub fn check_output(output: &Path) -> Result<()> {
    let folder = folder_of(output);
    if !folder.is_dir() {
        return Err(AgentError::Usage(format!(
            "{} cannot be written: the folder {} does not exist; make it first",
            output.display(),
            folder.display()
        )));
    }
    if output.is_dir() {
        return Err(AgentError::Usage(format!("{} is a folder; give the name of the file to write, such as model.esp", output.display())));
    }
    Ok(())
}
