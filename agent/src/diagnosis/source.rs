//! Where samples come from.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::feed::{Feed, WindowFormat};
use super::queue::WAIT;
use crate::error::{AgentError, Result, file_error};
use crate::signals::read::EXTENSIONS;
use crate::signals::{Corpus, Format, RawSource, ReadOptions, SignalError, read_recording, summarise};

/// Gives samples on a thread of its own.
pub trait Source: Send {
    /// Checks before anything runs that its samples are what the model reads.
    ///
    /// # Errors
    /// One sentence for the person where they are not.
    fn prepare(&mut self, format: &WindowFormat) -> Result<()> {
        let _ = format;
        Ok(())
    }

    /// Whether samples come by themselves and are lost where nobody takes them.
    fn is_live(&self) -> bool {
        false
    }

    /// Gives all samples to `feed`, until they end or it says break.
    fn run(&mut self, feed: &mut Feed) -> Result<()>;
}

/// A file with what is known of it beside its own words.
#[derive(Debug, Clone, PartialEq)]
pub struct Clip {
    /// The file.
    pub path: PathBuf,
    /// Its class; by the file's name where none is given.
    pub class: Option<String>,
    /// Samples a second; by the file where none is given.
    pub sample_rate_hz: Option<f64>,
}

/// Recordings one after the other, real or simulated.
#[derive(Debug, Clone)]
pub struct Recordings {
    clips: Vec<Clip>,
    repeat: bool,
}

/// Samples of a raw file that are read at once.
const PIECE: usize = 4096;

impl Recordings {
    /// These files in this order.
    pub fn new(clips: Vec<Clip>) -> Self {
        Self { clips, repeat: false }
    }

    /// Files, and folders of files, in this order. A folder may be a corpus, whose layout tells the classes, or hold any recordings, taken by name.
    ///
    /// # Errors
    /// [`SignalError`] where a path cannot be read or a folder holds no recording.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut clips = Vec::new();
        for path in paths {
            if fs::metadata(path).map_err(SignalError::io(path, "look at"))?.is_dir() {
                clips.extend(folder(path)?);
            } else {
                clips.push(Clip { path: path.clone(), class: None, sample_rate_hz: None });
            }
        }
        Ok(Self::new(clips))
    }

    /// Begins again after the last recording, until the run is stopped.
    pub fn repeated(self) -> Self {
        Self { repeat: true, ..self }
    }

    /// The files; a verdict's recording is an index into them.
    pub fn clips(&self) -> &[Clip] {
        &self.clips
    }

    /// The bytes of samples that are held at most while these are read: a recording is read whole, raw samples in pieces. Text tables tell
    /// their length only when they are read through.
    ///
    /// # Errors
    /// [`SignalError`] where a recording cannot be read.
    pub fn largest_bytes(&self) -> Result<u64> {
        let mut largest = 0;
        for clip in &self.clips {
            if !is_raw(&clip.path)? {
                let samples = summarise(&clip.path, &ReadOptions::default())?.samples as u64;
                largest = largest.max(samples.saturating_mul(size_of::<f32>() as u64));
            }
        }
        Ok(largest)
    }

    fn give(&self, index: usize, feed: &mut Feed) -> Result<ControlFlow<()>> {
        let (clip, number) = (&self.clips[index], index as u32);
        if is_raw(&clip.path)? {
            feed.format().check_rate(&clip.path, clip.sample_rate_hz)?;
            feed.begin(number, label(clip, None, feed.format()))?;
            let file = File::open(&clip.path).map_err(SignalError::io(&clip.path, "open"))?;
            return raw_samples(&mut RawSource::new(file, &clip.path), feed, |_| Ok(true));
        }
        let recording = read_recording(&clip.path)?;
        feed.format().check_rate(&clip.path, clip.sample_rate_hz.or(recording.sample_rate_hz))?;
        feed.begin(number, label(clip, recording.class.as_deref(), feed.format()))?;
        Ok(feed.samples(&recording.samples))
    }
}

impl Source for Recordings {
    fn prepare(&mut self, format: &WindowFormat) -> Result<()> {
        if self.clips.is_empty() {
            return Err(AgentError::Usage("no recording was given; give at least one file or folder".to_string()));
        }
        if u32::try_from(self.clips.len()).is_err() {
            return Err(AgentError::Usage(format!("{} recordings are too many; give at most 2^32", self.clips.len())));
        }
        for clip in &self.clips {
            if let Some(class) = clip.class.as_deref().filter(|class| format.class(class).is_none()) {
                log::warn!(
                    "{}: its class {class} is none of the model's ({}); its verdicts are not scored",
                    clip.path.display(),
                    format.classes.join(", ")
                );
            }
            let rate = match clip.sample_rate_hz {
                None if has_header(&clip.path) => summarise(&clip.path, &ReadOptions::default())?.sample_rate_hz,
                known => known,
            };
            format.check_rate(&clip.path, rate)?;
        }
        Ok(())
    }

    fn run(&mut self, feed: &mut Feed) -> Result<()> {
        loop {
            let before = feed.windows();
            for index in 0..self.clips.len() {
                if self.give(index, feed)?.is_break() {
                    return Ok(());
                }
            }
            // Recordings that are all shorter than a window would be read for ever.
            if !self.repeat || feed.windows() == before {
                return Ok(());
            }
        }
    }
}

/// The recordings of a folder, sorted.
fn folder(path: &Path) -> Result<Vec<Clip>> {
    match Corpus::open(path) {
        Ok(corpus) => {
            let clip = |entry: crate::signals::corpus::Entry| Clip {
                path: entry.path,
                class: Some(entry.class),
                sample_rate_hz: entry.sample_rate_hz,
            };
            return Ok(corpus.entries.into_iter().map(clip).collect());
        }
        // Any folder of recordings will do here: classes are not needed for a verdict.
        Err(SignalError::UnknownLayout { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(path).map_err(SignalError::io(path, "list the folder"))? {
        let found = entry.map_err(SignalError::io(path, "list the folder"))?.path();
        if extension(&found).is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) && found.is_file() {
            paths.push(found);
        }
    }
    if paths.is_empty() {
        let what = "a folder without recordings".to_string();
        let remedy = "give a folder with .mat, .csv, .wav, .npy or .f32 files, or a corpus";
        return Err(SignalError::Unsupported { path: path.to_path_buf(), what, remedy }.into());
    }
    paths.sort();
    Ok(paths.into_iter().map(|path| Clip { path, class: None, sample_rate_hz: None }).collect())
}

fn extension(path: &Path) -> Option<String> {
    path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase())
}

/// Whether the sample rate can be known without reading the whole file; text tables tell none.
fn has_header(path: &Path) -> bool {
    !extension(path).is_some_and(|extension| ["csv", "tsv", "txt"].contains(&extension.as_str()))
}

fn is_raw(path: &Path) -> Result<bool> {
    let mut start = Vec::with_capacity(8);
    let file = File::open(path).map_err(SignalError::io(path, "open"))?;
    file.take(8).read_to_end(&mut start).map_err(SignalError::io(path, "read"))?;
    Ok(Format::of(path, &start)? == Format::Raw)
}

fn label(clip: &Clip, named: Option<&str>, format: &WindowFormat) -> Option<usize> {
    clip.class.as_deref().or(named).and_then(|class| format.class(class))
}

/// A stream of raw little-endian f32 samples, such as standard input.
pub struct RawStream<R> {
    source: RawSource<R>,
    path: PathBuf,
    /// What is asked whether samples have come, so that a stop is heard while none come.
    polled: Option<OwnedFd>,
    live: bool,
}

impl RawStream<File> {
    /// Standard input.
    ///
    /// # Errors
    /// [`AgentError::File`] where it is closed.
    pub fn stdin() -> Result<Self> {
        let path = Path::new("standard input");
        let handle = io::stdin().as_fd().try_clone_to_owned().map_err(|error| file_error("cannot read from", path, &error))?;
        Self::polled(File::from(handle), path)
    }
}

impl<R: Read + Send> RawStream<R> {
    /// Any reader, whose reads do not wait for long; `path` is for messages.
    pub fn new(reader: R, path: &Path) -> Self {
        Self { source: RawSource::new(reader, path), path: path.to_path_buf(), polled: None, live: false }
    }

    /// A pipe, socket or device, whose reads may wait for ever.
    ///
    /// # Errors
    /// [`AgentError::File`] where the system refuses a second handle.
    pub fn polled(reader: R, path: &Path) -> Result<Self>
    where
        R: AsFd,
    {
        let polled = reader.as_fd().try_clone_to_owned().map_err(|error| file_error("cannot watch", path, &error))?;
        Ok(Self { polled: Some(polled), ..Self::new(reader, path) })
    }

    /// The other end does not wait: the oldest window is dropped where the engine is too slow.
    pub fn live(self) -> Self {
        Self { live: true, ..self }
    }
}

impl<R: Read + Send> Source for RawStream<R> {
    fn is_live(&self) -> bool {
        self.live
    }

    fn run(&mut self, feed: &mut Feed) -> Result<()> {
        feed.begin(0, None)?;
        let Self { source, path, polled, .. } = self;
        let ready = |feed: &Feed| polled.as_ref().map_or(Ok(true), |handle| wait_for_samples(handle, path, feed));
        raw_samples(source, feed, ready).map(|_| ())
    }
}

/// Gives what a raw source has until it ends, `ready` says no, or the feed says break.
fn raw_samples<R: Read>(source: &mut RawSource<R>, feed: &mut Feed, ready: impl Fn(&Feed) -> Result<bool>) -> Result<ControlFlow<()>> {
    let mut piece = vec![0.0; PIECE];
    while ready(feed)? {
        let count = source.read(&mut piece)?;
        if count == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        if feed.samples(&piece[..count]).is_break() {
            break;
        }
    }
    Ok(ControlFlow::Break(()))
}

/// Waits until there is something to read; false when the run is stopped meanwhile.
fn wait_for_samples(handle: &OwnedFd, path: &Path, feed: &Feed) -> Result<bool> {
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(WAIT.subsec_nanos()) };
    while !feed.is_stopped() {
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(file_error("cannot wait for", path, &error.into())),
        }
    }
    Ok(false)
}

/// Samples in memory, one recording after the other.
#[derive(Debug, Clone, Default)]
pub struct MemorySource {
    /// Samples of each recording and the name of its class where it is known.
    pub recordings: Vec<(Vec<f32>, Option<String>)>,
}

impl Source for MemorySource {
    fn run(&mut self, feed: &mut Feed) -> Result<()> {
        for (index, (samples, class)) in self.recordings.iter().enumerate() {
            let label = class.as_deref().and_then(|class| feed.format().class(class));
            feed.begin(index as u32, label)?;
            if feed.samples(samples).is_break() {
                break;
            }
        }
        Ok(())
    }
}
