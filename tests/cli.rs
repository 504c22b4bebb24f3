//! The program from the outside: what a person types, what it says, what it leaves on the disk, and how it ends.
//!
//! | module | concern |
//! |--|--|
//! | `artifacts` | files that are no artifact, or no longer one |
//! | `by_text` | language models that judge windows |
//! | `data` | recordings and splits that cannot be used, models of another kind |
//! | `language` | texts and questions for language models |
//! | `limits` | budgets, ratios and disks that are too small |
//! | `journeys` | from training or a checkpoint to a pruned model and back |
//! | `output` | help and JSON |
//! | `serving` | `run`: live sources, standard input, restarts |
//! | `stopping` | Ctrl-C |

#[path = "cli/artifacts.rs"]
mod artifacts;
#[path = "cli/by_text.rs"]
mod by_text;
#[path = "cli/data.rs"]
mod data;
#[path = "cli/journeys.rs"]
mod journeys;
#[path = "cli/language.rs"]
mod language;
#[path = "cli/limits.rs"]
mod limits;
#[path = "cli/output.rs"]
mod output;
#[path = "cli/serving.rs"]
mod serving;
#[path = "cli/stopping.rs"]
mod stopping;
mod support;
