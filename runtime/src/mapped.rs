//! What a session books of the artifact that it is opened from.

use std::sync::Arc;

use espalier_kernels::{Device, Purpose, Reservation};
use espalier_models::artifact::Artifact;

use crate::budget::Budget;
use crate::error::Result;
use crate::network::Network;
use crate::pages::Residency;

/// A network that serves, and the reservation of the pages that it is read from.
///
/// A device that reads in place has the artifact's whole mapping for its working set, booked for as long as the session lives. Another
/// device books what it takes; of the mapping, one tensor at a time is there while it is uploaded, so the largest is booked until all are.
pub(crate) fn load_resident<D: Device>(
    device: &D,
    budget: &Arc<Budget>,
    artifact: &Arc<Artifact>,
) -> Result<(Network<D>, Option<Reservation>)> {
    let in_place = device.reads_in_place();
    let largest = || artifact.manifest().tensors.iter().map(|tensor| tensor.bytes).max().unwrap_or(0);
    let bytes = if in_place { artifact.file_bytes() } else { largest() };
    let mapped = Reservation::new(budget.clone(), Purpose::Weights, bytes)?;
    let network = Network::load(device.for_purpose(Purpose::Weights), artifact, Residency::Resident)?;
    Ok((network, in_place.then_some(mapped)))
}
