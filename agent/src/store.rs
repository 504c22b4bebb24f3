//! The model store of a node: where the artifacts lie that the agent serves, writes and falls back to.
//!
//! ```text
//! factory.esp     the artifact that the node was set up with; read-only, never written again
//! slot-a.esp      \ the places of pruned artifacts: one is served, the other is where
//! slot-b.esp      / the next candidate is written
//! step-007.esp    what a running compression resumes from
//! journal         which of them is served (see `journal`)
//! ```
//!
//! Every change is: write a temporary file, fsync it, rename it, fsync the folder. A power cut between or within any two of these leaves
//! the old journal or the new one, never half of one, and [`Store::open`] serves what was committed last. A slot may be written while it
//! is still mapped, because a rename leaves the old file to those who have it open.
//!
//! The store does not read artifacts: whoever opens it says how to read the id of one.

mod error;
mod files;
mod journal;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use error::failed;
pub use error::{Recovery, StoreError};
pub use files::{Disk, Files};
pub use journal::{Active, Candidate, JournalError, NOTE_BYTES, Progress, Slot, Stage};
use journal::{JOURNAL_BYTES, Record};

/// Name of the journal in the store's folder.
const JOURNAL: &str = "journal";
/// Ending of files that are being written; whatever ends so when the store is opened is a leftover.
const TEMPORARY: &str = ".tmp";
/// Beginning of the names of a compression's intermediate artifacts.
const STEP: &str = "step-";

/// An open model store. One program may have a store open for writing.
#[derive(Debug)]
pub struct Store<F: Files = Disk> {
    files: F,
    folder: PathBuf,
    record: Record,
}

impl Store<Disk> {
    /// Sets a store up in `folder` (made where it is missing) with a copy of `factory`, which is served from now on. `read_id` gives an
    /// artifact's id, or says in words why it cannot be read. A copy, not a link: what others do to their file must not reach the factory.
    ///
    /// # Errors
    /// Where there is a store already, the artifact cannot be read, or the disk refuses.
    pub fn create(folder: &Path, factory: &Path, read_id: impl Fn(&Path) -> Result<u64, String>) -> Result<Self, StoreError> {
        Self::create_on(Disk, folder, factory, read_id)
    }

    /// Opens the store in `folder` and serves what was committed last; see [`Store::open_on`].
    ///
    /// # Errors
    /// Where there is no store, or nothing in it can be served.
    pub fn open(folder: &Path, read_id: impl Fn(&Path) -> Result<u64, String>) -> Result<(Self, Recovery), StoreError> {
        Self::open_on(Disk, folder, read_id)
    }
}

impl<F: Files> Store<F> {
    /// [`Store::create`] on any storage.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create_on(files: F, folder: &Path, factory: &Path, read_id: impl Fn(&Path) -> Result<u64, String>) -> Result<Self, StoreError> {
        let id = read_id(factory).map_err(|reason| StoreError::Artifact { path: factory.to_path_buf(), reason })?;
        files.create_folder(folder).map_err(failed("make", folder))?;
        if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            files.sync_folder(parent).map_err(failed("sync", parent))?;
        }
        let target = folder.join(Active::Factory.file());
        if files.exists(&target).map_err(failed("look for", &target))? {
            return Err(StoreError::Exists { path: folder.to_path_buf() });
        }
        let mut store = Self { files, folder: folder.to_path_buf(), record: Record::new(id) };
        // The journal first: a folder counts as a store once the factory artifact is there, and then its journal is there too.
        store.write_journal()?;
        let temporary = store.folder.join(format!("{}{TEMPORARY}", Active::Factory.file()));
        store.files.copy(factory, &temporary).map_err(failed("copy the factory artifact to", &temporary))?;
        store.files.set_read_only(&temporary).map_err(failed("protect", &temporary))?;
        store.files.sync(&temporary).map_err(failed("sync", &temporary))?;
        store.files.rename(&temporary, &target).map_err(failed("rename", &temporary))?;
        store.sync_folder()?;
        Ok(store)
    }

    /// Opens a store: reads the journal, checks that the served artifact is there and is the one that was committed, and removes what
    /// interrupted work has left. Whatever is wrong with the journal or a slot ends with the factory artifact and a sentence in the
    /// [`Recovery`]. A candidate that was still being judged stays, so that judging can be repeated; one on probation is dropped.
    ///
    /// # Errors
    /// Where there is no store, or the artifact to be served is the factory's and cannot be read.
    pub fn open_on(files: F, folder: &Path, read_id: impl Fn(&Path) -> Result<u64, String>) -> Result<(Self, Recovery), StoreError> {
        let factory = folder.join(Active::Factory.file());
        if !files.exists(&factory).map_err(failed("look for", &factory))? {
            return Err(StoreError::Missing { path: folder.to_path_buf() });
        }
        let mut notes = Vec::new();
        let record = read_journal(&files, folder, &mut notes);
        let known = record.is_some();
        let mut store = Self { files, folder: folder.to_path_buf(), record: record.unwrap_or_else(|| Record::new(0)) };
        let mut changed = !known;
        changed |= store.settle_active(&read_id, known, &mut notes)?;
        changed |= store.settle_candidate(&read_id, &mut notes);
        changed |= store.settle_progress(&mut notes);
        store.remove_leftovers(&mut notes);
        // A disk that cannot be written must not keep the node from serving what it has.
        if changed && let Err(error) = store.write_journal() {
            notes.push(error.to_string());
        }
        Ok((store, Recovery { notes }))
    }

    /// What is served.
    pub fn active(&self) -> Active {
        self.record.active
    }

    /// The id of the artifact that is served.
    pub fn active_id(&self) -> u64 {
        self.record.active_id
    }

    /// How often the journal was written: it grows with every change.
    pub fn generation(&self) -> u64 {
        self.record.generation
    }

    /// The candidate that is being judged or is on probation.
    pub fn candidate(&self) -> Option<Candidate> {
        self.record.candidate
    }

    /// How far the last compression came, to resume from [`Store::stage_path`] of its step.
    pub fn progress(&self) -> Option<&Progress> {
        self.record.progress.as_ref()
    }

    /// The file of an artifact.
    pub fn path(&self, active: Active) -> PathBuf {
        self.folder.join(active.file())
    }

    /// The slot that is not served: where the next candidate is written.
    pub fn inactive(&self) -> Slot {
        match self.record.active {
            Active::Slot(Slot::A) => Slot::B,
            Active::Slot(Slot::B) | Active::Factory => Slot::A,
        }
    }

    /// The file of the inactive slot. Write a candidate beside it and rename it here, or write it here: nothing that is served is touched.
    pub fn candidate_path(&self) -> PathBuf {
        self.path(Active::Slot(self.inactive()))
    }

    /// The file in which a compression keeps its network after `step` steps. It is kept for a resume once [`Store::finish_step`] names it.
    pub fn stage_path(&self, step: u32) -> PathBuf {
        self.folder.join(step_file(step))
    }

    /// Notes that the candidate with this id lies complete in the inactive slot and is being judged. The compression's intermediate
    /// artifacts are no longer needed and go.
    ///
    /// # Errors
    /// Where there is no such file, or the disk refuses; the store is then as before.
    pub fn begin_candidate(&mut self, id: u64) -> Result<(), StoreError> {
        let slot = self.inactive();
        self.seal(&self.path(Active::Slot(slot)))?;
        self.change(|record| {
            record.candidate = Some(Candidate { slot, id, stage: Stage::Verifying });
            record.progress = None;
        })?;
        self.remove_steps(None)
    }

    /// Notes that the candidate was accepted and now answers live windows, on probation.
    ///
    /// # Errors
    /// Where no candidate is being judged, or the disk refuses.
    pub fn begin_probation(&mut self) -> Result<(), StoreError> {
        match self.record.candidate {
            Some(candidate) if candidate.stage == Stage::Verifying => {
                self.change(|record| record.candidate = Some(Candidate { stage: Stage::Probation, ..candidate }))
            }
            _ => Err(StoreError::Order { action: "start a probation", reason: "no candidate is being judged".to_owned() }),
        }
    }

    /// Forgets the candidate: it was refused, or probation went badly. What is served stays.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn drop_candidate(&mut self) -> Result<(), StoreError> {
        if self.record.candidate.is_none() {
            return Ok(());
        }
        self.change(|record| record.candidate = None)
    }

    /// Serves the slot from now on, across power cuts too: the candidate in it, which must have been on probation, becomes the active
    /// artifact.
    ///
    /// # Errors
    /// Where the candidate on probation is another one or its file is missing, or the disk refuses; the store is then as before.
    pub fn commit(&mut self, slot: Slot, id: u64) -> Result<(), StoreError> {
        let expected = Candidate { slot, id, stage: Stage::Probation };
        if self.record.candidate != Some(expected) {
            let found = self.record.candidate.map_or("there is no candidate".to_owned(), |found| format!("the candidate is {found}"));
            return Err(StoreError::Order { action: "commit", reason: format!("{expected} was to be committed, but {found}") });
        }
        self.seal(&self.path(Active::Slot(slot)))?;
        self.change(|record| {
            record.active = Active::Slot(slot);
            record.active_id = id;
            record.candidate = None;
        })
    }

    /// Serves the factory artifact from now on.
    ///
    /// # Errors
    /// Where the disk refuses; the store is then as before.
    pub fn restore_factory(&mut self) -> Result<(), StoreError> {
        self.change(|record| {
            record.active = Active::Factory;
            record.active_id = record.factory_id;
            record.candidate = None;
        })
    }

    /// Notes that a compression has done `step` steps and that [`Store::stage_path`] of that step holds its network, so that it resumes
    /// there after a power cut. Earlier steps' files go. `note` is for the compression itself (settings, seed), at most [`NOTE_BYTES`].
    ///
    /// # Errors
    /// Where the note is too long, the file is missing or the disk refuses.
    pub fn finish_step(&mut self, step: u32, note: &str) -> Result<(), StoreError> {
        if note.len() > NOTE_BYTES {
            return Err(StoreError::Note { length: note.len() });
        }
        self.seal(&self.stage_path(step))?;
        self.change(|record| record.progress = Some(Progress { step, note: note.to_owned() }))?;
        self.remove_steps(Some(step))
    }

    /// Forgets the compression's progress and removes its files: the next one starts from the factory artifact.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn forget_progress(&mut self) -> Result<(), StoreError> {
        if self.record.progress.is_some() {
            self.change(|record| record.progress = None)?;
        }
        self.remove_steps(None)
    }

    /// Makes a file that someone else has written durable before the journal names it.
    fn seal(&self, path: &Path) -> Result<(), StoreError> {
        if !self.files.exists(path).map_err(failed("look for", path))? {
            return Err(StoreError::Artifact { path: path.to_path_buf(), reason: "the file is missing".to_owned() });
        }
        self.files.sync(path).map_err(failed("sync", path))?;
        self.sync_folder()
    }

    /// Changes the record on disk first; the one in memory follows only where that worked.
    fn change(&mut self, edit: impl FnOnce(&mut Record)) -> Result<(), StoreError> {
        let before = self.record.clone();
        edit(&mut self.record);
        self.write_journal().inspect_err(|_| self.record = before)
    }

    fn write_journal(&mut self) -> Result<(), StoreError> {
        self.record.generation = self.record.generation.saturating_add(1);
        let journal = self.folder.join(JOURNAL);
        let temporary = self.folder.join(format!("{JOURNAL}{TEMPORARY}"));
        let bytes = self.record.encode().map_err(io::Error::other).map_err(failed("encode", &journal))?;
        self.files.write(&temporary, &bytes).map_err(failed("write", &temporary))?;
        self.files.sync(&temporary).map_err(failed("sync", &temporary))?;
        self.files.rename(&temporary, &journal).map_err(failed("rename", &temporary))?;
        self.sync_folder()
    }

    fn sync_folder(&self) -> Result<(), StoreError> {
        self.files.sync_folder(&self.folder).map_err(failed("sync", &self.folder))
    }

    /// Falls back to the factory where the active slot cannot be served; says whether the record changed.
    fn settle_active(
        &mut self,
        read_id: &impl Fn(&Path) -> Result<u64, String>,
        known: bool,
        notes: &mut Vec<String>,
    ) -> Result<bool, StoreError> {
        let mut changed = false;
        if let Active::Slot(_) = self.record.active {
            let path = self.path(self.record.active);
            match check(&self.files, &path, self.record.active_id, read_id) {
                Ok(()) => return Ok(false),
                Err(problem) => {
                    notes.push(format!("{} cannot be served: {problem}; the factory artifact is served instead", path.display()))
                }
            }
            self.record.active = Active::Factory;
            changed = true;
        }
        let path = self.path(Active::Factory);
        let id = read_id(&path).map_err(|reason| StoreError::Factory { path: path.clone(), reason })?;
        if known && id != self.record.factory_id {
            let expected = self.record.factory_id;
            notes.push(format!(
                "{} has id {id:016x}, but this store was made with {expected:016x}; someone has replaced it",
                path.display()
            ));
        }
        changed |= (self.record.factory_id, self.record.active_id) != (id, id);
        (self.record.factory_id, self.record.active_id) = (id, id);
        Ok(changed)
    }

    fn settle_candidate(&mut self, read_id: &impl Fn(&Path) -> Result<u64, String>, notes: &mut Vec<String>) -> bool {
        let Some(candidate) = self.record.candidate else { return false };
        let path = self.path(Active::Slot(candidate.slot));
        let problem = if Active::Slot(candidate.slot) == self.record.active {
            Some("its slot is the one that is served".to_owned())
        } else if candidate.stage == Stage::Probation {
            Some("the program stopped while it was on probation".to_owned())
        } else {
            check(&self.files, &path, candidate.id, read_id).err()
        };
        let Some(problem) = problem else { return false };
        notes.push(format!("the candidate in {} is dropped: {problem}; what was committed last is served", path.display()));
        self.record.candidate = None;
        true
    }

    fn settle_progress(&mut self, notes: &mut Vec<String>) -> bool {
        let Some(step) = self.record.progress.as_ref().map(|progress| progress.step) else { return false };
        let path = self.stage_path(step);
        if self.files.exists(&path).unwrap_or(false) {
            return false;
        }
        notes.push(format!("{} is missing, so that compression starts again from the factory artifact", path.display()));
        self.record.progress = None;
        true
    }

    fn remove_leftovers(&self, notes: &mut Vec<String>) {
        let keep = self.record.progress.as_ref().map(|progress| step_file(progress.step));
        let stale = |name: &str| name.ends_with(TEMPORARY) || (is_step(name) && Some(name) != keep.as_deref());
        match self.files.list(&self.folder) {
            Ok(names) => {
                for name in names.iter().filter(|name| stale(name)) {
                    let path = self.folder.join(name);
                    if let Err(error) = self.files.remove(&path) {
                        notes.push(format!("{}, left by interrupted work, could not be removed: {error}", path.display()));
                    }
                }
            }
            Err(error) => notes.push(format!("{} could not be listed for leftovers: {error}", self.folder.display())),
        }
    }

    fn remove_steps(&self, keep: Option<u32>) -> Result<(), StoreError> {
        let keep = keep.map(step_file);
        let names = self.files.list(&self.folder).map_err(failed("list", &self.folder))?;
        for name in names.iter().filter(|name| is_step(name) && Some(name.as_str()) != keep.as_deref()) {
            let path = self.folder.join(name);
            self.files.remove(&path).map_err(failed("remove", &path))?;
        }
        Ok(())
    }
}

fn step_file(step: u32) -> String {
    format!("{STEP}{step:03}.esp")
}

fn is_step(name: &str) -> bool {
    name.strip_prefix(STEP).and_then(|rest| rest.strip_suffix(".esp")).is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}

fn check(files: &impl Files, path: &Path, id: u64, read_id: &impl Fn(&Path) -> Result<u64, String>) -> Result<(), String> {
    if !files.exists(path).map_err(|error| error.to_string())? {
        return Err("the file is missing".to_owned());
    }
    let found = read_id(path)?;
    if found != id { Err(format!("its id is {found:016x}, but {id:016x} was stored")) } else { Ok(()) }
}

fn read_journal(files: &impl Files, folder: &Path, notes: &mut Vec<String>) -> Option<Record> {
    let path = folder.join(JOURNAL);
    let problem = match files.read(&path, JOURNAL_BYTES + 1) {
        Ok(bytes) => match Record::decode(&bytes) {
            Ok(record) => return Some(record),
            Err(error) => error.to_string(),
        },
        Err(error) => format!("it cannot be read: {error}"),
    };
    notes.push(format!("{}: {problem}; the factory artifact is served and the journal starts anew", path.display()));
    None
}
