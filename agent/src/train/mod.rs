//! Training: from scratch (all parameters) and recovery (LoRA adapters), over the same steps.
//!
//! | module | concern |
//! |--|--|
//! | [`batches`] | shuffled, augmented batches of a window set |
//! | [`optimizer`] | AdamW over parameters and adapters, the learning-rate schedule |
//! | [`dense`] | a network from scratch |
//! | [`recovery`] | adapters after a cut |
//! | [`progress`] | what a run tells its caller, and how it is stopped |

pub mod batches;
pub mod dense;
pub mod optimizer;
pub mod progress;
pub mod recovery;

pub use batches::{Batches, Examples};
pub use dense::{DenseOptions, DenseReport, train_dense};
pub use optimizer::{Optimizer, Schedule};
pub use progress::{Progress, Quiet, Report, Stop};
pub use recovery::{Length, RecoveryOptions, RecoveryReport, recover};
