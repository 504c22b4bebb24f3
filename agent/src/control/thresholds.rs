//! The controller's numbers, each with its reason.

use std::time::Duration;

/// How long a deficit lasts before a smaller level is served. Two readings of the fast poll must agree; a level costs nothing to leave, so
/// there is no reason to wait longer while the host is short.
const SHRINK_HOLD: Duration = Duration::from_millis(200);
/// How long a deficit lasts before a compression starts. A compression takes minutes, so seconds cost little, and the bursts that a
/// neighbour's start-up or a page-cache flush makes are over within them.
const LOW_HOLD: Duration = Duration::from_secs(5);
/// How long the host is below its reserve before everything is dropped. The reserve is there to bridge this time: at 100 MB/s, about what
/// a program that fills memory from a disk reaches, one second uses up 100 MB.
const CRITICAL_HOLD: Duration = Duration::from_secs(1);
/// How long the host is well above its reserve before work starts again. Ten times the time to enter, so that what drove the host into its
/// reserve shows again before more work is started.
const CRITICAL_RELEASE_HOLD: Duration = Duration::from_secs(10);
/// How long there is room for a larger level before it is served. Loading its pages reads the disk, so it should stay for a while.
const CLIMB_HOLD: Duration = Duration::from_secs(30);
/// How long there is plenty of room before a running compression is given up, and how long a tighter target lasts before it starts again
/// with that: a fraction of the minutes that the work takes, yet more than a burst.
const CANCEL_HOLD: Duration = Duration::from_secs(20);
/// How long the factory artifact would fit before it is restored. Going back costs a whole compression if memory runs short again, so
/// the wait is about as long as one takes.
const REGAIN_HOLD: Duration = Duration::from_secs(600);
/// How long nothing is started after a swap: page cache and gauges need some readings to follow.
const SETTLE: Duration = Duration::from_secs(30);
/// First wait after a failure. A refused candidate is refused again unless data or memory change, which takes minutes.
const BACKOFF_FIRST: Duration = Duration::from_secs(60);
/// Longest wait after failures in a row: two hours keep the useless work of a node that cannot be compressed to a few percent of its day.
const BACKOFF_LONGEST: Duration = Duration::from_secs(7200);
/// Host headroom that is comfortable. Below it memory counts as low, so that compressing starts before the reserve itself is touched; the
/// work of a small node's compression (one layer, its gradients and adapters) fits into it.
const COMFORT_BYTES: u64 = 64 << 20;
/// Host headroom that ends Critical: above zero, so that one page does not decide, and well below what is comfortable, because only a
/// compression may bring a host there for good, and none starts in Critical.
const RELEASE_BYTES: u64 = 16 << 20;
/// A compression aims this share below the goal (1/32, 3 %), so that the next small change of goal or held does not start another.
const FIT_SHARE: u64 = 32;
/// A deficit is over when held is this share below the goal (1/64): half of what a compression aims at, so that a finished one ends it.
const CALM_SHARE: u64 = 64;
/// There is plenty of room when held, or the factory artifact, is this share below the goal (1/16): twice what a compression aims at, so
/// that "low" and "plenty" never hold for the same goal.
const PLENTY_SHARE: u64 = 16;
/// Windows that a candidate answers before it is committed. At a true rate of 95 % good windows, 64 hold about 3 bad ones.
const PROBATION_WINDOWS: u32 = 64;
/// Bad windows that end a probation: with 95 % good ones, 64 windows hold 10 bad ones in one case of 1000.
const PROBATION_BAD: u32 = 10;

/// The controller's numbers. The default is what a node uses; tests and demonstrations shorten the times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Deficit this long: a smaller level.
    pub shrink_hold: Duration,
    /// Deficit this long: a compression.
    pub low_hold: Duration,
    /// Below the reserve this long: Critical.
    pub critical_hold: Duration,
    /// Above the reserve this long: out of Critical.
    pub critical_release_hold: Duration,
    /// Room this long: a larger level.
    pub climb_hold: Duration,
    /// Plenty of room, or a tighter target, this long: the compression is cancelled.
    pub cancel_hold: Duration,
    /// Room for the factory artifact this long: it is restored.
    pub regain_hold: Duration,
    /// Nothing is started this long after a swap.
    pub settle: Duration,
    /// Wait after the first failure.
    pub backoff_first: Duration,
    /// Longest wait after failures.
    pub backoff_longest: Duration,
    /// Host headroom below this is low, in bytes.
    pub comfort_bytes: u64,
    /// Host headroom from here on ends Critical, in bytes.
    pub release_bytes: u64,
    /// A compression aims at the goal less one in this many bytes.
    pub fit_share: u64,
    /// A deficit is over at the goal less one in this many bytes.
    pub calm_share: u64,
    /// There is plenty of room at the goal less one in this many bytes.
    pub plenty_share: u64,
    /// Good windows that make a candidate the committed artifact.
    pub probation_windows: u32,
    /// Bad windows that roll a candidate back.
    pub probation_bad: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            shrink_hold: SHRINK_HOLD,
            low_hold: LOW_HOLD,
            critical_hold: CRITICAL_HOLD,
            critical_release_hold: CRITICAL_RELEASE_HOLD,
            climb_hold: CLIMB_HOLD,
            cancel_hold: CANCEL_HOLD,
            regain_hold: REGAIN_HOLD,
            settle: SETTLE,
            backoff_first: BACKOFF_FIRST,
            backoff_longest: BACKOFF_LONGEST,
            comfort_bytes: COMFORT_BYTES,
            release_bytes: RELEASE_BYTES,
            fit_share: FIT_SHARE,
            calm_share: CALM_SHARE,
            plenty_share: PLENTY_SHARE,
            probation_windows: PROBATION_WINDOWS,
            probation_bad: PROBATION_BAD,
        }
    }
}
