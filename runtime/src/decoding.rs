//! Reading one token after the other: the same work at every position, so that a device which records it runs it as one.
//!
//! A recording is of buffers and sizes. So the position of the token stands in memory of the device, and what is sized by the number of keys,
//! the blocks of attention, is sized for the most keys of a step: a power of two. A step is recorded once its second token comes, and again
//! where the next power of two is reached; a sequence of n tokens takes log₂ n recordings.

use espalier_kernels::{Device, Purpose, buffer_bytes};

use crate::error::Result;

/// The keys of the first step. Attention reads keys in parts of no fewer.
const LEAST_KEYS: usize = 64;

/// Where the token of a step stands.
pub(crate) struct StepPosition<'a, D: Device> {
    /// `[1]`, the position.
    pub index: &'a D::Indices,
    /// The most keys there may be with the token's own.
    pub most_keys: usize,
}

impl<D: Device> Clone for StepPosition<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for StepPosition<'_, D> {}

/// The work of one token with up to `most_keys` keys.
pub(crate) struct Step<D: Device> {
    pub most_keys: usize,
    /// `[1]`. Of this step alone: the recording stands for the positions that leave its keys enough.
    pub position: D::Indices,
    pub graph: D::Graph,
}

/// The steps of a session.
pub(crate) struct Steps<D: Device>(Vec<Step<D>>);

/// The most keys of every step of a session for `capacity` tokens, rising.
fn most_keys(capacity: usize) -> impl Iterator<Item = usize> {
    let rising = std::iter::successors(Some(LEAST_KEYS), |keys| keys.checked_mul(2)).take_while(move |keys| *keys < capacity);
    rising.chain([capacity])
}

impl<D: Device> Steps<D> {
    /// Steps up to `capacity` keys.
    pub fn new(device: &D, capacity: usize) -> Result<Self> {
        let device = device.for_purpose(Purpose::KvCache);
        let step = |most_keys| Ok(Step { most_keys, position: device.indices(&[0])?, graph: D::Graph::default() });
        most_keys(capacity).map(step).collect::<Result<_>>().map(Self)
    }

    /// The step of a token with which there are `keys` keys; none where that is more than the capacity.
    pub fn for_keys(&mut self, keys: usize) -> Option<&mut Step<D>> {
        self.0.iter_mut().find(|step| keys <= step.most_keys)
    }
}

/// Bytes that the steps of a session for `capacity` tokens book.
pub(crate) fn step_bytes(capacity: usize) -> u64 {
    most_keys(capacity).count() as u64 * buffer_bytes(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_rise_by_powers_of_two_to_the_capacity() {
        let steps = |capacity| most_keys(capacity).collect::<Vec<_>>();
        assert_eq!([steps(1), steps(64), steps(65), steps(300)], [vec![1], vec![64], vec![64, 65], vec![64, 128, 256, 300]]);
    }
}
