//! When to prune, when to swap and when to let go: the agent's state machine and the gauges that it reads.
//!
//! # Responsibilities
//! * Bring the program under its **goal** when memory runs short, and back to the factory artifact when it does not.
//! * Never let more than one background job run, and none while headroom is critical.
//! * Never commit a candidate that has not passed the holdout and its probation.
//! * Never flap: every change needs a condition that has held for a while, and an equal and opposite one to undo it.
//!
//! The [`Controller`] decides and does nothing itself. Whoever owns it reads the gauges, calls [`Controller::step`] about once a second
//! and at every [`Event`], and carries the returned [`Action`]s out; the time is an argument, so that tests drive days in milliseconds.
//!
//! # Glossary
//! * **held** bytes that count against goal and limit: anonymous memory, working set of the mapped artifacts, device bytes.
//! * **host headroom** bytes that the host and the control groups can still give before the reserve is touched. The working set is
//!   subtracted: the system calls it free, but evicting it would make the loop crawl.
//! * **deficit** bytes by which held must fall: over the goal, or so that the host is comfortable again; negative when there is room.
//! * **low** there is a deficit. **critical** the host's headroom is below zero, or the limit is exceeded. **regained** the factory
//!   artifact would fit with a margin.
//! * **committed** what the store would serve after a restart. **candidate** what runs on probation.
//!
//! # States
//! ```text
//!        ┌───────────── headroom ok ─────────────┐
//!        ▼                                       │
//!    Serving ── low ──▶ Shrunk ── still low ──▶ Compressing ──▶ Verifying ──▶ Swapping ──▶ Probation ──▶ Serving
//!        ▲                 │                        │ failed        │ refused     │ failed      │ health bad
//!        └── headroom ok ──┘                        └───────▶ back, backed off ◀──┴─────────────┘
//!    Serving ── regained ──▶ Swapping (to the factory artifact) ──▶ Serving
//!    no smaller level: Serving goes to Compressing directly
//!    any state ── critical ──▶ Critical ── headroom ok ──▶ what is still going on, else Serving or Shrunk
//! ```
//! Each state is described at [`State`], each threshold with the reason for its number at [`Thresholds`].

mod hardware;
mod hold;
pub mod linux;
mod linux_parse;
mod machine;
#[cfg(test)]
mod scenarios;
mod simulated;
mod state;
mod thresholds;

pub use hardware::{GaugeError, Hardware, Held, Pressure, Reading, Wake};
pub use machine::Controller;
pub use simulated::Simulated;
pub use state::{Action, Event, State};
pub use thresholds::Thresholds;
