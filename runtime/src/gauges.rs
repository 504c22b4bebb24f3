//! What the kernel says this process holds.
//!
//! Memory is judged by the kernel's own accounting, never by ours: anonymous memory is `RssAnon` of `/proc/self/status`, the working
//! set of an artifact is `Rss` of its mapping in `/proc/self/smaps`. Memory of a device, which the kernel counts for no process, is added
//! as it is mapped.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::{Result, RuntimeError};

/// What the process holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Anonymous resident bytes.
    pub anonymous: u64,
    /// Resident bytes of mapped artifacts.
    pub artifacts: u64,
    /// Memory of devices, and of their drivers outside the process, which shows in neither.
    pub device: u64,
}

impl Held {
    /// All together: what a [`Budget`](crate::Budget) is about.
    pub fn total(self) -> u64 {
        self.anonymous + self.artifacts + self.device
    }
}

/// Reads what the process holds; a mapped file counts as an artifact when its name ends in `.esp` (or is one that is being replaced).
pub fn held() -> Result<Held> {
    Ok(Held { anonymous: anonymous_bytes()?, artifacts: mapped_bytes(is_artifact)?, device: device_bytes() + OUTSIDE.load(Relaxed) })
}

/// What drivers hold for this process outside of it.
static OUTSIDE: AtomicU64 = AtomicU64::new(0);

/// Bytes that a driver holds for this process outside of it, which [`held`] counts until this is dropped.
pub struct OutsideBytes(u64);

impl OutsideBytes {
    /// So many, as somebody has measured.
    pub fn new(bytes: u64) -> Self {
        OUTSIDE.fetch_add(bytes, Relaxed);
        Self(bytes)
    }
}

impl Drop for OutsideBytes {
    fn drop(&mut self) {
        OUTSIDE.fetch_sub(self.0, Relaxed);
    }
}

/// Device memory that this process has mapped. On an integrated device it is the host's memory, and still in no gauge of the process.
fn device_bytes() -> u64 {
    #[cfg(feature = "cuda")]
    return espalier_kernels::cuda::device_bytes();
    #[cfg(not(feature = "cuda"))]
    0
}

/// `RssAnon` of this process, in bytes.
pub fn anonymous_bytes() -> Result<u64> {
    let path = "/proc/self/status";
    status_field(&read(path)?, "RssAnon:").ok_or_else(|| missing(path, "RssAnon"))
}

/// Bytes of the machine that are in no process, file or structure of the kernel that it counts: what drivers hold in modules of theirs, such
/// as the memory of an integrated GPU. What other processes have does not show, unless they make a driver take memory, too.
///
/// # Errors
/// [`RuntimeError::Gauge`] where the kernel does not say all that this is left of.
pub fn unaccounted_bytes() -> Result<u64> {
    let path = "/proc/meminfo";
    let unaccounted = unaccounted(&read(path)?).map_err(|field| missing(path, field))?;
    // Not readable in every container.
    let kept = read("/proc/zoneinfo").map_or(0, |zones| kept_pages(&zones));
    Ok(unaccounted.saturating_sub(kept.saturating_mul(rustix::param::page_size() as u64)))
}

fn unaccounted(meminfo: &str) -> std::result::Result<u64, &'static str> {
    const KNOWN: [&str; 6] = ["MemFree", "Buffers", "Cached", "AnonPages", "Slab", "PageTables"];
    // Not of every kernel.
    const OTHERS: [&str; 5] = ["SwapCached", "KernelStack", "SecPageTables", "Percpu", "Hugetlb"];
    let field = |name: &str| status_field(meminfo, &format!("{name}:"));
    let known = KNOWN.into_iter().try_fold(0_u64, |sum, name| Ok(sum.saturating_add(field(name).ok_or(name)?)))?;
    let others = OTHERS.into_iter().filter_map(field).fold(0, u64::saturating_add);
    Ok(field("MemTotal").ok_or("MemTotal")?.saturating_sub(known).saturating_sub(others))
}

/// Free pages that processors keep for themselves, and pages of compressed ones, which `/proc/meminfo` leaves out.
fn kept_pages(zoneinfo: &str) -> u64 {
    let count = |line: &str| {
        let line = line.trim();
        line.strip_prefix("count:").or_else(|| line.strip_prefix("nr_zspages"))?.trim().parse::<u64>().ok()
    };
    zoneinfo.lines().filter_map(count).fold(0, u64::saturating_add)
}

/// Resident bytes of the mappings whose file passes `filter`.
pub fn mapped_bytes(filter: impl Fn(&str) -> bool) -> Result<u64> {
    Ok(smaps_resident(&read("/proc/self/smaps")?, filter))
}

/// Resident bytes of the mapping of one file.
pub fn resident_bytes(file: &Path) -> Result<u64> {
    mapped_bytes(|name| Path::new(name) == file)
}

fn is_artifact(name: &str) -> bool {
    name.strip_suffix(" (deleted)").unwrap_or(name).ends_with(".esp")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|error| RuntimeError::Gauge { what: path.into(), reason: error.to_string() })
}

fn missing(path: &str, field: &str) -> RuntimeError {
    RuntimeError::Gauge { what: path.into(), reason: format!("it has no field {field}") }
}

fn status_field(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Sums `Rss` over the mappings whose name passes the filter. A mapping starts with a line `start-end perms offset device inode name`.
fn smaps_resident(smaps: &str, filter: impl Fn(&str) -> bool) -> u64 {
    let (mut counted, mut total) = (false, 0);
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or("");
        if !first.ends_with(':') && first.contains('-') {
            let name = line.splitn(6, ' ').nth(5).unwrap_or("").trim();
            counted = name.starts_with('/') && filter(name);
        } else if counted && let Some(bytes) = status_field(line, "Rss:") {
            total += bytes;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "7f10-7f20 r--s 00000000 fe:00 12   /data/model a.esp\nSize: 64 kB\nRss:      40 kB\nPss: 40 kB\n\
        7f20-7f30 rw-p 00000000 00:00 0 \nRss:      8 kB\n7f30-7f40 r--s 00000000 fe:00 13   /data/old.esp (deleted)\nRss:       4 kB\n\
        7f40-7f50 r-xp 00000000 fe:00 14   /usr/bin/espalier\nRss:     100 kB\n";

    #[test]
    fn only_artifacts_count_as_artifacts() {
        assert_eq!(smaps_resident(SMAPS, is_artifact), 44 * 1024);
        assert_eq!(smaps_resident(SMAPS, |name| name == "/usr/bin/espalier"), 100 * 1024);
    }

    #[test]
    fn what_nobody_accounts_for_is_what_is_left() {
        let meminfo = "MemTotal: 1000 kB\nMemFree: 500 kB\nMemAvailable: 700 kB\nBuffers: 10 kB\nCached: 100 kB\nSwapCached: 5 kB\n\
            AnonPages: 200 kB\nShmem: 50 kB\nSlab: 60 kB\nKernelStack: 3 kB\nPageTables: 2 kB\nHugePages_Total: 0\n";
        assert_eq!(unaccounted(meminfo), Ok(120 * 1024));
        assert_eq!(unaccounted(&meminfo.replace("Slab: 60 kB\n", "")), Err("Slab"));
        assert_eq!(unaccounted(""), Err("MemFree"));
        let zones = "Node 0, zone Normal\n  pages free 8\n  pagesets\n    cpu: 0\n              count:    7\n              high:     9\n    \
            cpu: 1\n              count: 5\n      nr_zspages   3\n";
        assert_eq!(kept_pages(zones), 15);
    }

    #[test]
    fn touched_anonymous_memory_shows() -> Result<()> {
        let before = anonymous_bytes()?;
        let touched = vec![1u8; 32 << 20];
        let after = anonymous_bytes()?;
        assert!(after >= before + (31 << 20), "{before} → {after}, {} bytes touched", touched.len());
        Ok(())
    }
}
