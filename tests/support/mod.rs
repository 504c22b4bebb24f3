//! The program as a person starts it, and what the tests give it: a simulated corpus, a small model trained on it, imported checkpoints.

pub mod language_model;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use espalier_agent::signals::{SimulationOptions, simulate_corpus};
use tempfile::TempDir;

/// How long a command may take on a busy machine before the test calls it hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// The size of the models that are trained here: three layers of four heads and 64 channels at width 32.
pub const SIZE: [&str; 8] = ["--layers", "3", "--width", "32", "--heads", "4", "--channels", "64"];

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// The exit code; none where a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_else(|error| panic!("the output is not UTF-8: {error}"));
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}):\n{}\n{}", self.stdout, self.stderr))
    }

    /// What is wrong with a refusal: another exit code, a word that is missing, or anything that no person should be shown.
    pub fn faults(&self, code: i32, words: &[&str]) -> Vec<String> {
        let mut faults = Vec::new();
        if self.code != Some(code) {
            faults.push(format!("exit code {:?}, expected {code}", self.code));
        }
        faults.extend(words.iter().filter(|word| !self.stderr.contains(**word)).map(|word| format!("it does not say `{word}`")));
        if self.stderr.contains("panicked") {
            faults.push("it panicked".into());
        }
        if !self.stderr.lines().any(|line| line.starts_with("espalier: ") || line.starts_with("error: ")) {
            faults.push("no line is an error sentence".into());
        }
        if faults.is_empty() { faults } else { vec![format!("{}; it said: {}", faults.join("; "), self.stderr.trim_end())] }
    }
}

/// A copy of the program, by the runner in `ESPALIER_RUNNER` where it is for another processor than this one (`qemu-aarch64 -L ROOT`).
pub fn program(path: &Path) -> Command {
    let runner = std::env::var("ESPALIER_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(first) = words.next() else { return Command::new(path) };
    let mut command = Command::new(first);
    command.args(words).arg(path);
    command
}

/// A folder of a test's own: `out` for what commands write, `scratch` for their temporary files.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the test");
        for name in ["out", "scratch"] {
            fs::create_dir(folder.path().join(name)).expect("a folder for the test");
        }
        Self { folder }
    }

    /// A file or folder that is given to commands.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file or folder that a command writes.
    pub fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join("out").join(name)
    }

    /// The program with its temporary files in `scratch`, on one thread, so that tests beside each other do not slow each other down.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = program(Path::new(env!("CARGO_BIN_EXE_espalier")));
        command.args(args).args(["--threads", "1"]).stdin(Stdio::null());
        self.surround(&mut command);
        command
    }

    /// The environment that every command has.
    pub fn surround(&self, command: &mut Command) {
        command.env("TMPDIR", self.path("scratch")).env_remove("ESPALIER_DATA").env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
    }

    /// Runs the program to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Said {
        Said::from(self.command(args).output().expect("the program starts"))
    }

    /// Runs the program, which must succeed.
    pub fn succeed<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Said {
        let said = self.run(args);
        assert_eq!(said.code, Some(0), "{}\n{}", said.stdout, said.stderr);
        said
    }

    /// Runs the program, which must refuse with this exit code and these words and leave every file as it was.
    pub fn refuse<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>, code: i32, words: &[&str]) -> Vec<String> {
        let before = self.listing();
        let mut faults = self.run(args).faults(code, words);
        faults.extend(self.changes(&before));
        faults
    }

    /// Every file and folder below, with its length; 0 for a folder.
    pub fn listing(&self) -> BTreeMap<PathBuf, u64> {
        let mut found = BTreeMap::new();
        list(self.folder.path(), &mut found);
        found
    }

    /// What has come, gone or changed since `before`.
    pub fn changes(&self, before: &BTreeMap<PathBuf, u64>) -> Vec<String> {
        let after = self.listing();
        let came =
            after.iter().filter(|(path, bytes)| before.get(*path) != Some(bytes)).map(|(path, _)| format!("it left {}", path.display()));
        let went = before.keys().filter(|path| !after.contains_key(*path)).map(|path| format!("it removed {}", path.display()));
        came.chain(went).collect()
    }
}

fn list(folder: &Path, found: &mut BTreeMap<PathBuf, u64>) {
    for entry in fs::read_dir(folder).expect("a folder that can be listed") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.insert(path.clone(), 0);
            list(&path, found);
        } else {
            let bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
            found.insert(path, bytes);
        }
    }
}

/// Waits until a running child has come so far; fails where it ends before, or hangs.
pub fn wait_until(child: &mut Child, what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        let ended = child.try_wait().expect("the child's status");
        if ended.is_some() || started.elapsed() > PATIENCE {
            let _ = child.kill();
            let mut said = String::new();
            let _ = child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut said));
            panic!("{what} has not come within {:?}; the program ended with {ended:?} and said: {said}", started.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal by its name.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().expect("kill");
    assert!(status.success(), "kill -{name}");
}

/// Waits for a child, kills one that hangs, and gives what it said.
pub fn end(mut child: Child) -> Said {
    // Pipes are emptied meanwhile: a full one would hold the child up.
    let mut readers = Vec::new();
    for pipe in [child.stdout.take().map(boxed), child.stderr.take().map(boxed)] {
        readers.push(std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(mut pipe) = pipe {
                pipe.read_to_string(&mut text).expect("UTF-8 from the program");
            }
            text
        }));
    }
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child's status") {
            break status;
        }
        if started.elapsed() > PATIENCE {
            child.kill().expect("a kill");
            panic!("the program did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let mut texts = readers.into_iter().map(|reader| reader.join().expect("a reader"));
    let (stdout, stderr) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
    Said { code: status.code(), stdout, stderr }
}

fn boxed<R: Read + Send + 'static>(pipe: R) -> Box<dyn Read + Send> {
    Box::new(pipe)
}

/// What all tests of a binary share; only read.
pub struct World {
    /// A simulated corpus: two machines to train on, one to test on.
    pub corpus: PathBuf,
    /// A signal model trained on it for 30 steps.
    pub model: PathBuf,
    /// A language model, imported from the parity fixture.
    pub gpt2: PathBuf,
}

/// The world, made on first use.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
        remove_worlds_of_the_past(root);
        let folder = root.join(format!("{WORLD_PREFIX}{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the tests");
        let world = World { corpus: folder.join("corpus"), model: folder.join("model.esp"), gpt2: folder.join("gpt2.esp") };
        simulate_corpus(&world.corpus, &SMALL, 1).expect("a simulated corpus");
        let place = Place::new();
        let train = ["train".as_ref(), "--data".as_ref(), world.corpus.as_os_str(), "-o".as_ref(), world.model.as_os_str()];
        place.succeed(train.into_iter().chain(SIZE.map(OsStr::new)).chain(["--steps", "30"].map(OsStr::new)));
        place.succeed([OsStr::new("import"), fixture("gpt2").as_os_str(), "-o".as_ref(), world.gpt2.as_os_str()]);
        world
    })
}

/// A corpus that is read and trained on within a second.
pub const SMALL: SimulationOptions = SimulationOptions { training_machines: 2, test_machines: 1, training_seconds: 1.5, test_seconds: 0.8 };

const WORLD_PREFIX: &str = "cli-world-";

/// Nothing runs after a test binary's last test, so each run takes the folders of earlier ones away.
fn remove_worlds_of_the_past(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(WORLD_PREFIX);
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Another run may be removing it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A parity fixture's folder.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

/// Copies the files of a folder.
pub fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("a copy");
    }
}

/// Fails with every fault of a table test.
pub fn assert_none(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// A command line of words and paths.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => {
        [$(::std::ffi::OsStr::new(&$arg).to_os_string()),*]
    };
}
