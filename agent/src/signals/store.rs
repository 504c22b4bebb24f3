//! Samples outside the heap: recordings in a temporary file of raw f32 that is mapped, so that its pages count as cache, not as anonymous
//! memory, and can be given back between uses.
//!
//! Recovery on a device reads calibration windows for minutes beside serving. Held in vectors, the recordings would count fully against the
//! limit; here only the pages of windows in use are resident, and [`SampleStore::release`] returns them. The file is removed by the
//! operating system when the store is dropped, even after a crash. Give a folder on a disk: on a tmpfs the pages are memory all the same.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};

use super::error::SignalError;

/// Takes recordings one by one; [`StoreWriter::finish`] makes them readable.
#[derive(Debug)]
pub struct StoreWriter {
    writer: BufWriter<File>,
    folder: PathBuf,
    /// First sample of each recording; one more for the end.
    starts: Vec<usize>,
}

impl StoreWriter {
    /// A new temporary file in `folder`.
    pub fn new(folder: &Path) -> Result<Self, SignalError> {
        let file = tempfile::tempfile_in(folder).map_err(SignalError::io(folder, "make a temporary file in"))?;
        Ok(Self { writer: BufWriter::with_capacity(64 * 1024, file), folder: folder.to_path_buf(), starts: vec![0] })
    }

    /// Adds a recording `[n]` and gives its number, counted from 0.
    pub fn push(&mut self, samples: &[f32]) -> Result<usize, SignalError> {
        for sample in samples {
            self.writer.write_all(&sample.to_le_bytes()).map_err(SignalError::io(&self.folder, "write a temporary file in"))?;
        }
        let end = self.starts.last().copied().unwrap_or(0) + samples.len();
        self.starts.push(end);
        Ok(self.starts.len() - 2)
    }

    /// Writes what is buffered and maps the file.
    pub fn finish(self) -> Result<SampleStore, SignalError> {
        let file =
            self.writer.into_inner().map_err(|error| SignalError::io(&self.folder, "write a temporary file in")(error.into_error()))?;
        // Pages that are not on disk yet cannot be given back.
        file.sync_data().map_err(SignalError::io(&self.folder, "write a temporary file in"))?;
        let empty = self.starts.last() == Some(&0);
        let map = if empty {
            None
        } else {
            // SAFETY: the file has no name (tempfile unlinks it) and only this store holds it, so nobody can shorten or change it while it is
            // mapped.
            Some(unsafe { Mmap::map(&file) }.map_err(SignalError::io(&self.folder, "map a temporary file in"))?)
        };
        Ok(SampleStore { map, file, starts: self.starts })
    }
}

/// Recordings in a mapped temporary file.
#[derive(Debug)]
pub struct SampleStore {
    map: Option<Mmap>,
    file: File,
    starts: Vec<usize>,
}

impl SampleStore {
    /// How many recordings it holds.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// True if it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Samples of a recording; none if there is no such recording.
    pub fn samples(&self, recording: usize) -> Option<usize> {
        Some(self.starts.get(recording.checked_add(1)?)? - self.starts[recording])
    }

    /// Bytes of all samples: the working set when every window has been read.
    pub fn bytes(&self) -> usize {
        self.map.as_ref().map_or(0, |map| map.len())
    }

    /// Copies samples `start..start + out.len()` of a recording. False, and nothing copied, if they do not lie within it.
    #[must_use]
    pub fn read(&self, recording: usize, start: usize, out: &mut [f32]) -> bool {
        let inside = |end: &usize| self.samples(recording).is_some_and(|samples| *end <= samples);
        if start.checked_add(out.len()).filter(inside).is_none() {
            return false;
        }
        let Some(map) = &self.map else { return out.is_empty() };
        let first = 4 * (self.starts[recording] + start);
        for (value, bytes) in out.iter_mut().zip(map[first..].chunks_exact(4)) {
            *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        true
    }

    /// Gives the pages back to the operating system; the next read brings them from disk again.
    pub fn release(&self) -> Result<(), SignalError> {
        let Some(map) = &self.map else { return Ok(()) };
        let failed = |error| SignalError::io(Path::new("the temporary file of samples"), "give back the pages of")(error);
        // SAFETY: a shared, read-only file mapping: dropped pages are read from the file again, with the same content; nothing borrowed from
        // the map outlives `read`.
        unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) }.map_err(failed)?;
        let length = NonZeroU64::new(map.len() as u64);
        rustix::fs::fadvise(&self.file, 0, length, rustix::fs::Advice::DontNeed).map_err(|error| failed(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_survive_a_release_and_bounds_hold() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = StoreWriter::new(folder.path()).unwrap();
        let first: Vec<f32> = (0..5000).map(|i| i as f32).collect();
        assert_eq!(writer.push(&first).unwrap(), 0);
        assert_eq!(writer.push(&[]).unwrap(), 1);
        assert_eq!(writer.push(&[7.0, 8.0]).unwrap(), 2);
        let store = writer.finish().unwrap();
        assert_eq!((store.len(), store.samples(0), store.samples(1), store.samples(3)), (3, Some(5000), Some(0), None));
        let mut out = [0.0; 3];
        assert!(store.read(0, 4997, &mut out));
        store.release().unwrap();
        assert!(store.read(0, 4997, &mut out));
        assert_eq!(out, [4997.0, 4998.0, 4999.0]);
        assert!(!store.read(0, 4998, &mut out) && !store.read(2, 0, &mut out) && !store.read(9, 0, &mut out));
        assert!(!store.read(0, usize::MAX, &mut out) && !store.read(usize::MAX, 0, &mut out));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has a name");
        let empty = StoreWriter::new(folder.path()).unwrap().finish().unwrap();
        assert!(empty.is_empty() && empty.release().is_ok());
    }
}
