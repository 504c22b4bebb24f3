//! The compiled kernels, and the order in which they are tried.

use std::borrow::Cow;

/// An image of the kernels: a cubin, a fatbin or PTX ending in a zero byte.
pub(super) struct Candidate {
    /// What it is, for the log.
    pub name: String,
    /// Its bytes, or why there are none.
    pub image: Box<dyn FnOnce() -> Result<Cow<'static, [u8]>, String>>,
}

/// The images that may run on a device of `capability` under a driver of version `driver` (12060 is 12.6), in the order in which they are
/// to be tried.
pub(super) fn candidates(_capability: (u32, u32), _driver: i32) -> Vec<Candidate> {
    Vec::new()
}
