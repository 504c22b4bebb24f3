//! The store against power cuts at every file operation, damaged journals and missing artifacts.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use proptest::prelude::*;

use super::journal::Record;
use super::*;

const FACTORY_ID: u64 = 1;

/// A disk that loses what was not synced. Names are journalled: a cut keeps a prefix of the changes since the folder was last synced.
#[derive(Debug, Clone, Default)]
struct Simulated(Rc<RefCell<State>>);

#[derive(Debug, Clone, Default)]
struct State {
    /// Content of every file that ever was, and whether it is durable.
    contents: Vec<(Vec<u8>, bool)>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    changes: Vec<Change>,
    operations: usize,
    /// The operation in which the power goes; it and all later ones fail.
    cut_at: Option<usize>,
    random: u64,
}

#[derive(Debug, Clone)]
enum Change {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Change::Create(path, content) => {
                names.insert(path.clone(), *content);
            }
            Change::Rename(from, to) => {
                if let Some(content) = names.remove(from) {
                    names.insert(to.clone(), content);
                }
            }
            Change::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

impl State {
    fn random(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % bound.max(1)
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    /// Counts an operation; in the one that is cut, `half_done` may still happen.
    fn operate<T>(&mut self, half_done: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        let operation = self.operations;
        self.operations += 1;
        match self.cut_at {
            Some(cut) if operation > cut => Err(io::Error::other("no power")),
            Some(cut) if operation == cut => {
                if self.random(2) == 0 {
                    let _ = half_done(self);
                }
                Err(io::Error::other("power cut"))
            }
            _ => half_done(self),
        }
    }
}

impl Simulated {
    fn new(seed: u64, cut_at: Option<usize>) -> Self {
        let disk = Self::default();
        disk.place("/factory", FACTORY_ID);
        let mut state = disk.0.borrow_mut();
        (state.random, state.cut_at) = (seed, cut_at);
        drop(state);
        disk
    }

    /// A durable artifact.
    fn place(&self, path: &str, id: u64) {
        let mut state = self.0.borrow_mut();
        let content = state.contents.len();
        state.contents.push((artifact(id), true));
        state.names.insert(path.into(), content);
        state.durable_names.insert(path.into(), content);
    }

    /// Power comes back: unsynced content is cut short or garbled, unsynced names are kept up to some change.
    fn restart(&self, cut_at: Option<usize>) -> Self {
        let mut state = self.0.borrow().clone();
        let kept = state.random(state.changes.len() + 1);
        let mut names = state.durable_names.clone();
        state.changes[..kept].iter().for_each(|change| change.apply(&mut names));
        for index in 0..state.contents.len() {
            if !state.contents[index].1 {
                let length = state.random(state.contents[index].0.len() + 1);
                state.contents[index].0.truncate(length);
                state.contents[index].1 = true;
            }
        }
        (state.names, state.durable_names) = (names.clone(), names);
        state.changes.clear();
        (state.operations, state.cut_at) = (0, cut_at);
        Self(Rc::new(RefCell::new(state)))
    }

    fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.0.borrow();
        state.names.get(path).map(|content| state.contents[*content].0.clone())
    }

    fn read_id(&self) -> impl Fn(&Path) -> Result<u64, String> + use<> {
        let disk = self.clone();
        move |path| {
            let bytes = disk.content(path).ok_or("the file is missing")?;
            let id = bytes.first_chunk().map(|id| u64::from_le_bytes(*id)).ok_or("the file is too short")?;
            if bytes == artifact(id) { Ok(id) } else { Err("the file is cut".to_owned()) }
        }
    }

    fn open(&self) -> Result<(Store<Self>, Recovery), StoreError> {
        Store::open_on(self.clone(), Path::new("/store"), self.read_id())
    }

    fn create(&self) -> Result<Store<Self>, StoreError> {
        Store::create_on(self.clone(), Path::new("/store"), Path::new("/factory"), self.read_id())
    }
}

fn artifact(id: u64) -> Vec<u8> {
    id.to_le_bytes().repeat(5)
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Files for Simulated {
    fn create_folder(&self, _: &Path) -> io::Result<()> {
        self.0.borrow_mut().operate(|_| Ok(()))
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.0.borrow_mut().operate(|state| Ok(state.names.contains_key(path)))
    }
    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let bytes = self.content(path).ok_or_else(missing)?;
        self.0.borrow_mut().operate(|_| Ok(bytes.into_iter().take(limit).collect()))
    }
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().operate(|state| {
            match state.names.get(path) {
                Some(&content) => state.contents[content] = (bytes.to_vec(), false),
                None => {
                    let content = state.contents.len();
                    state.contents.push((bytes.to_vec(), false));
                    state.change(Change::Create(path.to_path_buf(), content));
                }
            }
            Ok(())
        })
    }
    fn copy(&self, from: &Path, to: &Path) -> io::Result<()> {
        let bytes = self.content(from).ok_or_else(missing)?;
        self.write(to, &bytes)
    }
    fn set_read_only(&self, _: &Path) -> io::Result<()> {
        self.0.borrow_mut().operate(|_| Ok(()))
    }
    fn sync(&self, path: &Path) -> io::Result<()> {
        self.0.borrow_mut().operate(|state| {
            let content = *state.names.get(path).ok_or_else(missing)?;
            state.contents[content].1 = true;
            Ok(())
        })
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.borrow_mut().operate(|state| {
            state.change(Change::Rename(from.to_path_buf(), to.to_path_buf()));
            Ok(())
        })
    }
    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        self.0.borrow_mut().operate(|state| {
            state.durable_names = state.names.clone();
            state.changes.clear();
            Ok(())
        })
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.borrow_mut().operate(|state| {
            state.change(Change::Remove(path.to_path_buf()));
            Ok(())
        })
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let inside = |path: &PathBuf| path.strip_prefix(folder).ok().and_then(Path::to_str).map(str::to_owned);
        self.0.borrow_mut().operate(|state| Ok(state.names.keys().filter_map(inside).collect()))
    }
}

/// What an agent does with its store.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Step(u32),
    Begin(u64),
    Refuse,
    Probation,
    Commit,
    Restore,
}

/// Does one deed and returns the id that is then served.
fn perform(disk: &Simulated, store: &mut Store<Simulated>, deed: Deed) -> Result<u64, StoreError> {
    match deed {
        Deed::Step(step) => {
            let path = store.stage_path(step);
            disk.write(&path, &artifact(u64::from(step))).map_err(failed("write", &path))?;
            store.finish_step(step, "seed 42")?;
        }
        Deed::Begin(id) => {
            let path = store.candidate_path();
            disk.write(&path, &artifact(id)).map_err(failed("write", &path))?;
            store.begin_candidate(id)?;
        }
        Deed::Refuse => store.drop_candidate()?,
        Deed::Probation => store.begin_probation()?,
        Deed::Commit => {
            let candidate = store.candidate().unwrap_or(Candidate { slot: Slot::A, id: 0, stage: Stage::Verifying });
            store.commit(candidate.slot, candidate.id)?;
        }
        Deed::Restore => store.restore_factory()?,
    }
    Ok(store.active_id())
}

/// The id served after `deed`, where the store accepts it.
fn served_after(store: &Store<Simulated>, deed: Deed) -> u64 {
    match (deed, store.candidate()) {
        (Deed::Commit, Some(Candidate { id, stage: Stage::Probation, .. })) => id,
        (Deed::Restore, _) => FACTORY_ID,
        _ => store.active_id(),
    }
}

/// Runs the deeds until the power goes in operation `cut`, then again a second time while recovering, and says what was broken.
fn survive(deeds: &[Deed], seed: u64, cut: Option<usize>) -> Result<bool, String> {
    let disk = Simulated::new(seed, cut);
    let mut allowed = vec![FACTORY_ID];
    let mut created = false;
    if let Ok(mut store) = disk.create() {
        created = true;
        for &deed in deeds {
            let after = served_after(&store, deed);
            match perform(&disk, &mut store, deed) {
                Ok(id) => allowed = vec![id],
                Err(StoreError::Order { .. }) => {}
                Err(_) => {
                    allowed.push(after);
                    break;
                }
            }
        }
    }
    let ended = cut.is_none_or(|cut| disk.0.borrow().operations <= cut);
    let second_cut = disk.restart(Some(seed as usize % 13));
    let _ = second_cut.open();
    let disk = second_cut.restart(None);
    match disk.open() {
        Ok((store, _)) if !allowed.contains(&store.active_id()) => {
            return Err(format!("serves {:x}, allowed {allowed:x?}", store.active_id()));
        }
        Ok((store, recovery)) => {
            let path = store.path(store.active());
            disk.read_id()(&path).map_err(|error| format!("what is served cannot be read: {error}"))?;
            let journal = recovery.notes.iter().find(|note| note.contains("the journal starts anew") || note.contains("cannot be served"));
            if let Some(note) = journal.filter(|_| created) {
                return Err(format!("a power cut alone must not need the fallback: {note}"));
            }
            let leftovers = Files::list(&disk, Path::new("/store")).unwrap().into_iter().filter(|name| name.ends_with(TEMPORARY)).count();
            if leftovers > 0 {
                return Err(format!("{leftovers} temporary files are left"));
            }
        }
        Err(StoreError::Missing { .. }) if !created => {
            disk.create().map_err(|error| format!("cannot be created again: {error}"))?;
        }
        Err(error) => return Err(error.to_string()),
    }
    Ok(ended)
}

const LIFE: [Deed; 14] = [
    Deed::Step(1),
    Deed::Step(2),
    Deed::Begin(10),
    Deed::Probation,
    Deed::Commit,
    Deed::Begin(11),
    Deed::Refuse,
    Deed::Begin(12),
    Deed::Probation,
    Deed::Commit,
    Deed::Restore,
    Deed::Begin(13),
    Deed::Probation,
    Deed::Commit,
];

#[test]
fn a_power_cut_in_any_file_operation_leaves_the_last_commit() {
    let mut failures = Vec::new();
    for seed in 0..16 {
        for cut in 0..1000 {
            match survive(&LIFE, seed, Some(cut)) {
                Ok(true) => break,
                Ok(false) => {}
                Err(problem) => failures.push(format!("seed {seed}, cut in operation {cut}: {problem}")),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A store that serves 10 from slot A, and 11 being judged in slot B.
fn lived_in() -> Simulated {
    let disk = Simulated::new(0, None);
    let mut store = disk.create().unwrap();
    for deed in [Deed::Begin(10), Deed::Probation, Deed::Commit, Deed::Begin(11)] {
        perform(&disk, &mut store, deed).unwrap();
    }
    assert_eq!((store.active(), store.active_id(), store.inactive()), (Active::Slot(Slot::A), 10, Slot::B));
    disk
}

#[test]
fn slots_take_turns_and_a_candidate_survives_a_restart() {
    let (store, recovery) = lived_in().restart(None).open().unwrap();
    assert_eq!(recovery, Recovery::default());
    assert_eq!(store.candidate(), Some(Candidate { slot: Slot::B, id: 11, stage: Stage::Verifying }));
    assert_eq!(store.candidate_path(), Path::new("/store/slot-b.esp"));
}

#[test]
fn a_slot_that_is_missing_or_another_artifact_ends_in_the_factory() {
    let replaced = [("is missing", None), ("its id is", Some(artifact(99))), ("the file is cut", Some(artifact(10)[..20].to_vec()))];
    for (problem, content) in replaced {
        let disk = lived_in();
        match content {
            None => disk.remove(Path::new("/store/slot-a.esp")).unwrap(),
            Some(bytes) => disk.write(Path::new("/store/slot-a.esp"), &bytes).unwrap(),
        }
        let (store, recovery) = disk.open().unwrap();
        assert_eq!((store.active(), store.active_id()), (Active::Factory, FACTORY_ID), "{problem}");
        assert!(recovery.to_string().contains(problem), "{recovery}");
        assert_eq!(disk.open().unwrap().1, Recovery::default(), "the fallback is remembered");
    }
}

#[test]
fn a_candidate_on_probation_is_dropped_at_a_restart() {
    let disk = lived_in();
    disk.open().unwrap().0.begin_probation().unwrap();
    let (store, recovery) = disk.open().unwrap();
    assert_eq!((store.active_id(), store.candidate()), (10, None));
    assert!(recovery.to_string().contains("on probation"), "{recovery}");
}

#[test]
fn a_compression_resumes_from_the_step_that_was_finished() {
    let disk = Simulated::new(0, None);
    let mut store = disk.create().unwrap();
    for step in 1..=3 {
        perform(&disk, &mut store, Deed::Step(step)).unwrap();
    }
    disk.write(&store.stage_path(4), &artifact(4)).unwrap();
    let (mut store, _) = disk.open().unwrap();
    assert_eq!(store.progress(), Some(&Progress { step: 3, note: "seed 42".to_owned() }));
    let steps =
        |disk: &Simulated| Files::list(disk, Path::new("/store")).unwrap().into_iter().filter(|name| is_step(name)).collect::<Vec<_>>();
    assert_eq!(steps(&disk), ["step-003.esp"]);
    store.forget_progress().unwrap();
    assert!(steps(&disk).is_empty());
    assert!(matches!(store.finish_step(1, &"x".repeat(NOTE_BYTES + 1)), Err(StoreError::Note { .. })));
    assert!(matches!(store.finish_step(7, ""), Err(StoreError::Artifact { .. })));
}

#[test]
fn only_a_candidate_on_probation_is_committed() {
    let disk = lived_in();
    let (mut store, _) = disk.open().unwrap();
    assert!(matches!(store.commit(Slot::B, 11), Err(StoreError::Order { .. })));
    store.begin_probation().unwrap();
    assert!(matches!(store.commit(Slot::B, 12), Err(StoreError::Order { .. })));
    assert!(matches!(store.begin_probation(), Err(StoreError::Order { .. })));
    store.commit(Slot::B, 11).unwrap();
    assert_eq!((store.active_id(), store.inactive()), (11, Slot::A));
}

#[test]
fn the_real_disk_holds_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let (source, root) = (folder.path().join("source.esp"), folder.path().join("store"));
    std::fs::write(&source, artifact(FACTORY_ID)).unwrap();
    let read_id = |path: &Path| std::fs::read(path).map_err(|error| error.to_string()).map(|bytes| u64::from(bytes[0]));
    let mut store = Store::create(&root, &source, read_id).unwrap();
    assert!(std::fs::metadata(store.path(Active::Factory)).unwrap().permissions().readonly());
    std::fs::write(store.candidate_path(), artifact(5)).unwrap();
    store.begin_candidate(5).unwrap();
    store.begin_probation().unwrap();
    store.commit(Slot::A, 5).unwrap();
    assert!(matches!(Store::create(&root, &source, read_id), Err(StoreError::Exists { .. })));
    let (store, recovery) = Store::open(&root, read_id).unwrap();
    assert_eq!((store.active(), store.active_id(), recovery.notes.len()), (Active::Slot(Slot::A), 5, 0));
    assert!(matches!(Store::open(&folder.path().join("none"), read_id), Err(StoreError::Missing { .. })));
    let nothing = |_: &Path| Err("no artifact".to_owned());
    assert!(matches!(Store::open(&root, nothing), Err(StoreError::Factory { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_life_survives_a_cut_anywhere(
        deeds in proptest::collection::vec(prop_oneof![
            (1u32..20).prop_map(Deed::Step), (10u64..99).prop_map(Deed::Begin), Just(Deed::Refuse), Just(Deed::Probation),
            Just(Deed::Commit), Just(Deed::Restore)], 0..20),
        seed: u64,
        cut in 0usize..250,
    ) {
        prop_assert_eq!(survive(&deeds, seed, Some(cut)).err(), None);
    }

    #[test]
    fn a_garbled_journal_serves_the_factory_or_what_it_says(
        at in 0usize..80, flip in 1u8.., length in proptest::option::of(0usize..80), extra in 0usize..3,
    ) {
        let disk = lived_in();
        let path = Path::new("/store/journal");
        let mut bytes = disk.content(path).unwrap();
        match length {
            Some(length) => bytes.truncate(length),
            None => { let at = at % bytes.len(); bytes[at] ^= flip; }
        }
        bytes.extend(std::iter::repeat_n(0, extra));
        let intact = bytes == disk.content(path).unwrap();
        disk.write(path, &bytes).unwrap();
        let (store, recovery) = disk.open().unwrap();
        if intact {
            prop_assert_eq!(store.active_id(), 10);
        } else {
            prop_assert_eq!((store.active(), store.active_id()), (Active::Factory, FACTORY_ID));
            prop_assert!(recovery.to_string().contains("the factory artifact is served"));
        }
        prop_assert!(disk.open().unwrap().1.notes.is_empty());
    }

    #[test]
    fn any_bytes_are_a_journal_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Record::decode(&bytes);
        let mut framed = b"ESPJRNL1".to_vec();
        framed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        framed.extend_from_slice(&bytes);
        framed.extend_from_slice(&crc32c::crc32c(&framed).to_le_bytes());
        if let Ok(record) = Record::decode(&framed) {
            // A varint may be longer than needed, so that bytes may differ, but the meaning is the same.
            prop_assert_eq!(Record::decode(&record.encode().unwrap()), Ok(record));
        }
    }
}
