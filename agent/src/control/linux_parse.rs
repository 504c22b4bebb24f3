//! The texts of Linux memory gauges, read without touching a file. Whatever does not have the documented form gives none.

use std::path::{Component, Path, PathBuf};

use super::hardware::Pressure;

/// Of a control group hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// One hierarchy a controller.
    V1,
    /// One hierarchy for all.
    V2,
}

impl Version {
    /// Files that hold a limit; the smallest counts. From `memory.high` on the kernel slows the group down, which is too late as well.
    pub fn limit_files(self) -> &'static [&'static str] {
        match self {
            Version::V1 => &["memory.limit_in_bytes"],
            Version::V2 => &["memory.max", "memory.high"],
        }
    }

    /// The file that holds what the group and those below it use.
    pub fn usage_file(self) -> &'static str {
        match self {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        }
    }

    /// The lines of `memory.stat` that count file pages of the group and those below it. The two lists of the page cache, not `file`,
    /// which counts shared memory too: that cannot be dropped.
    fn file_keys(self) -> [&'static str; 2] {
        match self {
            Version::V1 => ["total_active_file", "total_inactive_file"],
            Version::V2 => ["active_file", "inactive_file"],
        }
    }
}

/// The group of this process in one hierarchy, from `/proc/self/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Membership {
    pub version: Version,
    /// From the root of the hierarchy.
    pub path: String,
}

/// Where a hierarchy with the memory controller is mounted, from `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub version: Version,
    /// The group that is visible as the mount point; `/` but in containers.
    pub root: String,
    /// The mount point.
    pub point: PathBuf,
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
pub(super) fn mem_available_bytes(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A file that holds one number.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A file that holds a limit in bytes, or says that there is none.
pub(super) fn limit_bytes(text: &str) -> Option<Option<u64>> {
    // Version 1 writes "no limit" as the largest number of whole pages; nothing that a machine has comes near half of it.
    const NO_LIMIT: u64 = 1 << 62;
    if text.trim() == "max" {
        return Some(None);
    }
    number(text).map(|bytes| (bytes < NO_LIMIT).then_some(bytes))
}

/// File pages of a group and those below it, from its `memory.stat`, in bytes.
pub(super) fn file_pages_bytes(stat: &str, version: Version) -> Option<u64> {
    let line = |key: &str| {
        stat.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| *name == key).and_then(|(_, value)| number(value)))
    };
    let [active, inactive] = version.file_keys();
    line(active)?.checked_add(line(inactive)?)
}

/// The groups of this process that may have the memory controller, from `/proc/self/cgroup` (lines `id:controllers:path`).
pub(super) fn memberships(text: &str) -> Vec<Membership> {
    let membership = |line: &str| {
        let (id, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let version = match (id, controllers) {
            ("0", "") => Version::V2,
            _ if controllers.split(',').any(|controller| controller == "memory") => Version::V1,
            _ => return None,
        };
        path.starts_with('/').then(|| Membership { version, path: path.to_owned() })
    };
    text.lines().filter_map(membership).collect()
}

/// Mounted hierarchies that may have the memory controller, from `/proc/self/mountinfo` (proc(5): id, parent, device, root, mount point,
/// options, optional fields, `-`, type, source, options of the file system).
pub(super) fn memory_mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let version = match (right.next()?, right.nth(1)) {
            ("cgroup2", _) => Version::V2,
            ("cgroup", Some(options)) if options.split(',').any(|option| option == "memory") => Version::V1,
            _ => return None,
        };
        Some(Mount { version, root: unescape(root), point: PathBuf::from(unescape(point)) })
    };
    text.lines().filter_map(mount).collect()
}

/// Mount files write space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The folders of a group and all above it, innermost first, under the mount point of a hierarchy of which `root` is visible. In a container
/// the path may lie outside what is visible; the mount point itself is then the process's outermost visible group.
pub(super) fn folders(point: &Path, root: &str, path: &str) -> Vec<PathBuf> {
    let inside = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    // A path that climbs (`/../x`, another namespace's group) is not visible here.
    let plain = inside.components().all(|part| matches!(part, Component::Normal(_)));
    let inside = if plain { inside } else { Path::new("") };
    inside.ancestors().map(|part| if part.as_os_str().is_empty() { point.to_path_buf() } else { point.join(part) }).collect()
}

/// `/proc/pressure/memory`.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let line = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        let share: f64 = field("avg10")?.parse().ok()?;
        (0.0..=100.0).contains(&share).then_some(())?;
        Some((share, field("total")?.parse::<u64>().ok()?))
    };
    let (some_avg10_percent, some_total_us) = line("some")?;
    let (full_avg10_percent, full_total_us) = line("full")?;
    Some(Pressure { some_avg10_percent, full_avg10_percent, some_total_us, full_total_us })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_read_or_refused() {
        let available = [
            ("MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:    8192 kB\n", Some(8192 * 1024)),
            ("MemAvailable: 8192", None),
            ("MemAvailable: -1 kB", None),
            ("MemAvailable: 18446744073709551615 kB", None),
            ("", None),
        ];
        let limits =
            [("max\n", Some(None)), ("1048576\n", Some(Some(1 << 20))), ("9223372036854771712\n", Some(None)), ("", None), ("1 MB", None)];
        let wrong: Vec<_> = available.iter().filter(|(text, expected)| mem_available_bytes(text) != *expected).collect();
        let wrong_limits: Vec<_> = limits.iter().filter(|(text, expected)| limit_bytes(text) != *expected).collect();
        assert!(wrong.is_empty() && wrong_limits.is_empty(), "{wrong:?} {wrong_limits:?}");
        let stat = "anon 5\nfile 99\nactive_file 3\ninactive_file 4\ntotal_active_file 30\ntotal_inactive_file 40\n";
        assert_eq!(file_pages_bytes(stat, Version::V2), Some(7));
        assert_eq!(file_pages_bytes(stat, Version::V1), Some(70));
        assert_eq!(file_pages_bytes("active_file 3\n", Version::V2), None);
    }

    #[test]
    fn groups_and_mounts_are_found() {
        let cgroup = "9:name=systemd:/\n5:cpu,cpuacct:/x\n4:memory:/a:b/c\n0::/user.slice\nbroken\n1:memory\n";
        let expected =
            [(Version::V1, "/a:b/c"), (Version::V2, "/user.slice")].map(|(version, path)| Membership { version, path: path.to_owned() });
        assert_eq!(memberships(cgroup), expected);
        let mountinfo = "30 23 0:26 / /sys/fs/cgroup rw shared:4 master:1 - cgroup2 cgroup2 rw\n\
            36 30 0:31 /docker/abc /mnt/with\\040space rw - cgroup cgroup rw,memory\n\
            37 30 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            38 30 8:1 / / rw - ext4 /dev/sda1 rw\n39 cut off";
        let mount = |version, root: &str, point: &str| Mount { version, root: root.to_owned(), point: point.into() };
        assert_eq!(
            memory_mounts(mountinfo),
            [mount(Version::V2, "/", "/sys/fs/cgroup"), mount(Version::V1, "/docker/abc", "/mnt/with space")]
        );
    }

    #[test]
    fn every_group_up_to_the_mount_is_walked() {
        let cases: [(&str, &str, &[&str]); 5] = [
            ("/", "/a/b", &["/m/a/b", "/m/a", "/m"]),
            ("/", "/", &["/m"]),
            ("/docker/abc", "/docker/abc/x", &["/m/x", "/m"]),
            ("/docker/abc", "/elsewhere", &["/m"]),
            ("/", "/../../etc", &["/m"]),
        ];
        let failures: Vec<_> = cases
            .iter()
            .map(|(root, path, expected)| {
                (root, path, folders(Path::new("/m"), root, path), expected.iter().map(PathBuf::from).collect::<Vec<_>>())
            })
            .filter(|(_, _, found, expected)| found != expected)
            .collect();
        assert!(failures.is_empty(), "{failures:?}");
    }

    #[test]
    fn pressure_is_read_or_refused() {
        let text = "some avg10=1.25 avg60=0.10 avg300=0.00 total=123456\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=99\n";
        let expected = Pressure { some_avg10_percent: 1.25, full_avg10_percent: 0.5, some_total_us: 123_456, full_total_us: 99 };
        assert_eq!(pressure(text), Some(expected));
        let cut = (0..text.len()).filter(|length| pressure(&text[..*length]).is_some_and(|read| read.some_total_us != 123_456)).count();
        assert_eq!(cut, 0, "a cut file never gives another total for what was read whole");
        assert_eq!(pressure("some avg10=NaN total=1\nfull avg10=0 total=1\n"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_fail(text in "(\\PC|\n| |:|=|-|/|\\.|0::/|some avg10=|MemAvailable:|memory| - cgroup2 ){0,60}", path in "[/.a]{0,20}") {
            let _ = (mem_available_bytes(&text), limit_bytes(&text), pressure(&text), memberships(&text), memory_mounts(&text));
            let _ = (file_pages_bytes(&text, Version::V1), file_pages_bytes(&text, Version::V2));
            for folder in folders(Path::new("/m"), &path, &text).iter().chain(&folders(Path::new("/m"), &text, &path)) {
                prop_assert!(folder.starts_with("/m"));
            }
        }
    }
}
