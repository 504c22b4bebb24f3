//! The gauges of a Linux node: `/proc/meminfo`, control groups of both versions, and pressure stall information.
//!
//! A control group's file pages count as available, as they do in `MemAvailable`; whoever computes headroom subtracts the working set of
//! the mapped artifacts from both. Groups are nested, and any of them may be the tightest, so all from the process's own to the root of
//! the mount are read and the smallest headroom wins.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::hardware::{GaugeError, Hardware, Held, Pressure, Wake};
use super::linux_parse as parse;

/// Longest gauge file that is read: `mountinfo` of a node full of containers has some hundred KiB, all others have a few.
const GAUGE_BYTES: u64 = 1 << 20;
/// Deepest nesting of control groups that is walked; the kernel's own default limit for nesting is far above what anyone uses.
const GROUP_DEPTH: usize = 64;
/// What the kernel is asked to report: some task waiting for memory for 100 ms within one second. That is well above what a healthy node
/// shows (single milliseconds) and well below what a person notices. Without `CAP_SYS_RESOURCE` the window must be a multiple of 2 s, so
/// the same share of that is asked for next.
const TRIGGERS: [&str; 2] = ["some 100000 1000000\0", "some 200000 2000000\0"];

/// Where gauges are read from; tests point it elsewhere.
#[derive(Debug, Clone)]
struct Roots {
    /// `/proc`
    proc: PathBuf,
    /// Put before the mount points of control groups; `/`.
    mounts: PathBuf,
}

/// One memory control group from which this process takes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    version: parse::Version,
}

/// The gauges of this machine.
#[derive(Debug)]
pub struct Linux<H> {
    roots: Roots,
    started: Instant,
    reserve_bytes: u64,
    held: H,
    groups: Vec<Group>,
    trigger: Option<File>,
}

impl<H: FnMut() -> Held> Linux<H> {
    /// Finds the control groups and asks the kernel to report pressure. `reserve_bytes` are left to everyone else on the host; `held` says
    /// what the program holds, as its budget knows it.
    ///
    /// # Errors
    /// Where `/proc` does not say which control groups the process is in.
    pub fn new(reserve_bytes: u64, held: H) -> Result<Self, GaugeError> {
        Self::at(Roots { proc: "/proc".into(), mounts: "/".into() }, reserve_bytes, held)
    }

    fn at(roots: Roots, reserve_bytes: u64, held: H) -> Result<Self, GaugeError> {
        let groups = find_groups(&roots)?;
        let trigger = open_trigger(&roots.proc.join("pressure/memory"));
        if trigger.is_none() {
            log::info!("the kernel reports no memory pressure to this process; the gauges are polled instead");
        }
        Ok(Self { roots, started: Instant::now(), reserve_bytes, held, groups, trigger })
    }

    /// Whether the kernel wakes [`Hardware::wait`] at memory pressure.
    pub fn has_trigger(&self) -> bool {
        self.trigger.is_some()
    }

    /// The folders of the control groups that are read, innermost first.
    pub fn groups(&self) -> impl Iterator<Item = &Path> {
        self.groups.iter().map(|group| group.folder.as_path())
    }
}

impl<H: FnMut() -> Held> Hardware for Linux<H> {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn held(&mut self) -> Held {
        (self.held)()
    }

    fn available_bytes(&mut self) -> Result<Option<u64>, GaugeError> {
        let path = self.roots.proc.join("meminfo");
        let host = match read_if_there(&path)? {
            Some(text) => Some(parse::mem_available_bytes(&text).ok_or_else(|| format_error(&path, "MemAvailable line", &text))?),
            None => None,
        };
        let mut smallest = host;
        for group in &self.groups {
            if let Some(room) = group_room_bytes(group)? {
                smallest = Some(smallest.map_or(room, |smallest| smallest.min(room)));
            }
        }
        Ok(smallest.map(|available| available.saturating_sub(self.reserve_bytes)))
    }

    fn pressure(&mut self) -> Option<Pressure> {
        let text = read_if_there(&self.roots.proc.join("pressure/memory")).ok().flatten()?;
        parse::pressure(&text)
    }

    fn wait(&mut self, timeout: Duration) -> Wake {
        let Some(file) = &self.trigger else {
            std::thread::sleep(timeout);
            return Wake::Timeout;
        };
        let started = Instant::now();
        let limit = Timespec { tv_sec: timeout.as_secs().min(i64::MAX as u64) as i64, tv_nsec: timeout.subsec_nanos().into() };
        let mut descriptors = [PollFd::new(file, PollFlags::PRI)];
        let result = poll(&mut descriptors, Some(&limit));
        let events = descriptors[0].revents();
        match result {
            Ok(1..) if events.contains(PollFlags::ERR) || events.contains(PollFlags::NVAL) => {
                log::warn!("the kernel has withdrawn the memory pressure trigger; the gauges are polled instead");
                self.trigger = None;
            }
            Ok(1..) => return Wake::Pressure,
            Ok(0) => return Wake::Timeout,
            // A signal: the caller looks at its flags and waits again.
            Err(rustix::io::Errno::INTR) => return Wake::Timeout,
            Err(error) => {
                log::warn!("waiting for memory pressure failed: {error}; the gauges are polled instead");
                self.trigger = None;
            }
        }
        std::thread::sleep(timeout.saturating_sub(started.elapsed()));
        Wake::Timeout
    }
}

fn open_trigger(path: &Path) -> Option<File> {
    for trigger in TRIGGERS {
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        match opened.and_then(|mut file| file.write_all(trigger.as_bytes()).map(|()| file)) {
            Ok(file) => return Some(file),
            Err(error) => log::debug!("{}: no trigger `{}`: {error}", path.display(), trigger.trim_end_matches('\0')),
        }
    }
    None
}

/// The text of a gauge; none where there is no such file, which means that the kernel has no such gauge.
fn read_if_there(path: &Path) -> Result<Option<String>, GaugeError> {
    let mut bytes = Vec::new();
    let result = File::open(path).and_then(|file| file.take(GAUGE_BYTES).read_to_end(&mut bytes));
    match result {
        Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(GaugeError::Io { path: path.to_path_buf(), source }),
    }
}

fn format_error(path: &Path, expected: &'static str, text: &str) -> GaugeError {
    let found = text.chars().take(40).flat_map(char::escape_default).collect();
    GaugeError::Format { path: path.to_path_buf(), expected, found }
}

/// All memory control groups above this process, innermost first; none where the kernel has no such groups.
fn find_groups(roots: &Roots) -> Result<Vec<Group>, GaugeError> {
    let (Some(cgroup), Some(mounts)) =
        (read_if_there(&roots.proc.join("self/cgroup"))?, read_if_there(&roots.proc.join("self/mountinfo"))?)
    else {
        return Ok(Vec::new());
    };
    let memberships = parse::memberships(&cgroup);
    let mut groups = Vec::new();
    for mount in parse::memory_mounts(&mounts) {
        let Some(membership) = memberships.iter().find(|membership| membership.version == mount.version) else { continue };
        let point = roots.mounts.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
        for folder in parse::folders(&point, &mount.root, &membership.path).into_iter().take(GROUP_DEPTH) {
            let group = Group { folder, version: mount.version };
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
    }
    Ok(groups)
}

/// What a group can still give: its limit, less what it uses, file pages not counted as used. None where it has no limit, or is gone.
fn group_room_bytes(group: &Group) -> Result<Option<u64>, GaugeError> {
    let mut limit: Option<u64> = None;
    for name in group.version.limit_files() {
        let path = group.folder.join(name);
        let Some(text) = read_if_there(&path)? else { continue };
        let bytes = parse::limit_bytes(&text).ok_or_else(|| format_error(&path, "limit in bytes", &text))?;
        limit = match (limit, bytes) {
            (Some(limit), Some(bytes)) => Some(limit.min(bytes)),
            (limit, bytes) => limit.or(bytes),
        };
    }
    let Some(limit) = limit else { return Ok(None) };
    let usage_path = group.folder.join(group.version.usage_file());
    let Some(usage_text) = read_if_there(&usage_path)? else { return Ok(None) };
    let usage = parse::number(&usage_text).ok_or_else(|| format_error(&usage_path, "usage in bytes", &usage_text))?;
    let stat_path = group.folder.join("memory.stat");
    let Some(stat) = read_if_there(&stat_path)? else { return Ok(None) };
    let file_pages =
        parse::file_pages_bytes(&stat, group.version).ok_or_else(|| format_error(&stat_path, "counts of file pages", &stat))?;
    Ok(Some(limit.saturating_sub(usage.saturating_sub(file_pages))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine made of files.
    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Roots) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let roots = Roots { proc: folder.path().join("proc"), mounts: folder.path().to_path_buf() };
        (folder, roots)
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 8000 kB\nMemAvailable:    4000 kB\n");
    const V2_MOUNT: (&str, &str) =
        ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
    const V1_MOUNT: (&str, &str) = ("proc/self/mountinfo", "36 30 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");

    fn available(files: &[(&str, &str)]) -> Result<Option<u64>, GaugeError> {
        let (_folder, roots) = machine(files);
        Linux::at(roots, 1000, Held::default)?.available_bytes()
    }

    #[test]
    fn the_tightest_of_nested_groups_wins() {
        let v2 = |inner_max, outer_max| {
            available(&[
                MEMINFO,
                V2_MOUNT,
                ("proc/self/cgroup", "0::/system.slice/espalier.service\n"),
                ("sys/fs/cgroup/system.slice/espalier.service/memory.max", inner_max),
                ("sys/fs/cgroup/system.slice/espalier.service/memory.high", "max\n"),
                ("sys/fs/cgroup/system.slice/espalier.service/memory.current", "500000\n"),
                ("sys/fs/cgroup/system.slice/espalier.service/memory.stat", "anon 1\nactive_file 100000\ninactive_file 200000\n"),
                ("sys/fs/cgroup/system.slice/memory.max", outer_max),
                ("sys/fs/cgroup/system.slice/memory.current", "600000\n"),
                ("sys/fs/cgroup/system.slice/memory.stat", "active_file 0\ninactive_file 0\n"),
            ])
            .unwrap()
        };
        assert_eq!(v2("max\n", "max\n"), Some(4000 * 1024 - 1000));
        assert_eq!(v2("1000000\n", "max\n"), Some(1_000_000 - 200_000 - 1000));
        assert_eq!(v2("1000000\n", "700000\n"), Some(100_000 - 1000));
        assert_eq!(v2("1000000\n", "600500\n"), Some(0), "the reserve is touched");
    }

    #[test]
    fn version_1_groups_count_the_whole_subtree() {
        let files = [
            MEMINFO,
            V1_MOUNT,
            ("proc/self/cgroup", "9:cpu:/\n4:memory:/box\n0::/\n"),
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1000000\n"),
            ("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "900000\n"),
            ("sys/fs/cgroup/memory/box/memory.stat", "inactive_file 7\ntotal_active_file 100000\ntotal_inactive_file 50000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(available(&files).unwrap(), Some(250_000 - 1000));
    }

    #[test]
    fn a_gauge_that_is_not_there_is_none_and_a_broken_one_is_an_error() {
        assert_eq!(available(&[]).unwrap(), None);
        assert_eq!(available(&[MEMINFO]).unwrap(), Some(4000 * 1024 - 1000));
        let broken = available(&[("proc/meminfo", "MemTotal: 1 kB\n")]).unwrap_err().to_string();
        assert!(broken.contains("meminfo") && broken.contains("MemAvailable"), "{broken}");
        let limit = available(&[V2_MOUNT, ("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.max", "plenty\n")]);
        assert!(limit.unwrap_err().to_string().contains("memory.max has no limit in bytes (it starts with `plenty"));
    }

    #[test]
    fn this_machine_can_be_read() {
        let mut linux = Linux::new(0, || Held { held_bytes: 5, working_set_bytes: 2 }).unwrap();
        let reading = linux.read(10, 20, 30).unwrap();
        assert_eq!((reading.held_bytes, reading.working_set_bytes, reading.goal_bytes), (5, 2, 10));
        assert!(reading.available_bytes.is_some_and(|available| available > 0));
        let before = linux.now();
        linux.wait(Duration::from_millis(5));
        assert!(linux.now() >= before);
    }
}
