//! Structured pruning: which units go, in which order, and the smaller network as an artifact.
//!
//! | module | concern |
//! |--|--|
//! | [`selection`] | which units stay |
//! | [`pack`] | the network that is left, written as an artifact |
//! | [`target`] | what the network must fit into |
//! | [`split`] | how much goes at each stage |
//! | [`trial`] | the holdout loss of a removal that is only tried |
//! | [`cascade`] | layers, then heads, then channels, recovered after each stage |

pub mod cascade;
pub mod pack;
pub mod selection;
pub mod split;
pub mod target;
pub mod trial;

pub use cascade::{Cascade, CascadeOptions, CascadeResult, StageReport};
pub use selection::{LayerSelection, Selection};
pub use split::Split;
pub use target::Target;
