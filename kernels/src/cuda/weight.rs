//! Matrices as they are stored: uploaded, read in place, or trained.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::arena::{Arena, Block};
use super::device::{Core, Held};
use super::memory::{Buffer, Pointer, take};
use super::planes::{self, Planes, Quants};
use super::registration::Registration;
use crate::device::{Format, HostBytes};
use crate::error::{KernelError, Result};

/// What the widest load of the kernels wants a matrix to start at.
const IN_PLACE_ALIGNMENT: usize = 16;

/// From this size on a matrix is registered where it is. A smaller one shares pages with others, which can be registered only once, and
/// costs little as a copy: an artifact starts its matrices of 1 MiB and more at 64 KiB boundaries.
const REGISTERED_FROM_BYTES: usize = 1 << 20;

enum Data {
    Owned(Buffer),
    Uploaded(Block),
    /// Read by the host's page tables.
    Host(HostBytes),
    Registered(Vec<Registration>, HostBytes),
    Empty,
    /// A shrink failed; what there was is given back.
    Gone,
}

impl Data {
    /// Gives back what holds the numbers: pages of the host once no work on the device reads them.
    fn release(self, core: &Core) {
        match self {
            Data::Host(pages) => core.give_back(Held::Pages(pages)),
            data => drop(data),
        }
    }
}

/// A matrix `[rows, columns]`, owned, uploaded, or read where the host has it.
pub struct Weight {
    core: Arc<Core>,
    rows: usize,
    columns: usize,
    format: Format,
    /// Of a quantised matrix.
    planes: Option<Planes>,
    data: Data,
    /// As of a [`Storage`](super::Storage).
    recorded: AtomicU64,
}

/// Bytes of a stored matrix.
pub(super) fn stored_bytes(format: Format, rows: usize, columns: usize) -> Result<usize> {
    let overflow = || KernelError::Shape { operation: "map_weight", detail: format!("[{rows}, {columns}] does not fit in memory") };
    format.stored_bytes(rows, columns).ok_or_else(overflow)
}

impl Weight {
    /// A matrix of stored bytes: in place where the device reads the host's memory, else uploaded into `arena`.
    pub(super) fn mapped(
        core: &Arc<Core>,
        arena: &Arc<Arena>,
        host: HostBytes,
        format: Format,
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        let needed = stored_bytes(format, rows, columns)?;
        let bytes = host.bytes();
        let bytes = bytes.get(..needed).ok_or_else(|| KernelError::Shape {
            operation: "map_weight",
            detail: format!("a {format:?} matrix [{rows}, {columns}] takes {needed} bytes, but {} were given", bytes.len()),
        })?;
        let _entered = core.enter()?;
        core.refuse_while_capturing("map_weight")?;
        let (attributes, aligned) = (core.attributes(), (bytes.as_ptr() as usize).is_multiple_of(IN_PLACE_ALIGNMENT));
        let part = first(host.clone(), needed);
        let data = if needed == 0 {
            Data::Empty
        } else if attributes.reads_in_place() && aligned {
            Data::Host(part)
        } else {
            let in_place = attributes.integrated && attributes.registers && aligned && needed >= REGISTERED_FROM_BYTES;
            match if in_place { Registration::of(core, &part, std::slice::from_ref(&(0..needed)))? } else { None } {
                Some(registered) => Data::Registered(registered, part),
                None => {
                    if attributes.integrated {
                        let why = if aligned { "its pages are not registered" } else { "it does not start at 16 bytes" };
                        log::debug!("a matrix of {needed} bytes is copied to the device and not read in place: {why}");
                    }
                    Data::Uploaded(upload(core, arena, bytes)?)
                }
            }
        };
        let planes = Planes::stored(format, rows, columns);
        Ok(Self { core: core.clone(), rows, columns, format, planes, data, recorded: AtomicU64::new(0) })
    }

    /// A matrix of its own.
    pub(super) fn owned(core: &Arc<Core>, buffer: Buffer, rows: usize, columns: usize) -> Result<Self> {
        if rows.checked_mul(columns).is_none_or(|len| len > buffer.len()) {
            let detail = format!("a matrix [{rows}, {columns}] was to be made of a buffer of {} numbers", buffer.len());
            return Err(KernelError::Shape { operation: "own_weight", detail });
        }
        let data = Data::Owned(buffer);
        Ok(Self { core: core.clone(), rows, columns, format: Format::F32, planes: None, data, recorded: AtomicU64::new(0) })
    }

    /// `(rows, columns)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Whether it is read in the host's bytes that it was mapped from.
    pub(super) fn reads_host(&self) -> bool {
        matches!(self.data, Data::Host(_) | Data::Registered(..))
    }

    /// How the numbers are stored.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Where the first row is. Work that is being recorded is taken to use the matrix: once it is dropped or moved the graph is not run any
    /// more. An error where a shrink has failed.
    pub(super) fn pointer(&self) -> Result<Pointer> {
        if self.core.gate().is_capturing() {
            self.recorded.store(self.core.generation() + 1, Ordering::Relaxed);
        }
        Ok(match &self.data {
            Data::Owned(buffer) => buffer.pointer(),
            Data::Uploaded(block) => block.pointer(),
            Data::Host(bytes) | Data::Registered(_, bytes) => Pointer::new(bytes.bytes().as_ptr() as u64),
            Data::Empty => Pointer::NULL,
            Data::Gone => {
                let reason = format!("a matrix [{}, {}] was lost when it was shrunk; map it again", self.rows, self.columns);
                return Err(KernelError::Device { operation: "weight", reason, lost: false });
            }
        })
    }

    /// The planes of a quantised matrix; none of another. As [`pointer`](Weight::pointer).
    pub(super) fn quants(&self) -> Result<Option<Quants>> {
        let start = self.pointer()?;
        Ok(self.planes.as_ref().map(|planes| planes.at(self.format, start)))
    }

    /// The buffer of an owned matrix.
    pub(super) fn buffer(&self) -> Option<&Buffer> {
        match &self.data {
            Data::Owned(buffer) => Some(buffer),
            _ => None,
        }
    }

    /// The buffer of an owned matrix, to be written.
    pub(super) fn buffer_mut(&mut self) -> Option<&mut Buffer> {
        match &mut self.data {
            Data::Owned(buffer) => Some(buffer),
            _ => None,
        }
    }

    fn block(&self) -> Option<&Block> {
        match &self.data {
            Data::Uploaded(block) => Some(block),
            _ => None,
        }
    }

    /// Checks that `rows` rows can be kept.
    fn check_kept(&self, rows: usize) -> Result<()> {
        if rows > self.rows || (rows < self.rows && matches!(self.data, Data::Owned(_))) {
            let what = if rows > self.rows { "more rows than it has" } else { "fewer rows of a trained matrix" };
            let detail = format!("{rows} rows of a matrix of {} were to be kept: {what}", self.rows);
            return Err(KernelError::Shape { operation: "shrink", detail });
        }
        planes::check_kept(self.format, self.rows, rows)
    }

    /// Bytes from the first to the last that is used.
    fn bytes(&self) -> Result<usize> {
        self.planes.as_ref().map_or_else(|| stored_bytes(self.format, self.rows, self.columns), |planes| Ok(planes.bytes()))
    }

    /// Keeps the first `rows` rows of a quantised matrix. Uploaded planes are moved together; others stay where the host has them.
    fn keep_planes(&mut self, rows: usize) -> Result<()> {
        let (Some(planes), Some(kept)) = (&self.planes, Planes::stored(self.format, rows, self.columns)) else { return Ok(()) };
        let mut planes = planes.first(&kept);
        if rows == 0 {
            planes = kept;
        } else if let Data::Uploaded(block) = &self.data {
            planes.compact(&self.core, block.pointer())?;
        }
        self.planes = Some(planes);
        Ok(())
    }

    /// Keeps the first `rows` rows, of which there are as many. What is uploaded stays where it is, for the arena to move.
    fn keep(&mut self, rows: usize) -> Result<()> {
        if let Err(error) = self.keep_planes(rows) {
            self.data = Data::Gone;
            return Err(error);
        }
        let fewer = rows < std::mem::replace(&mut self.rows, rows);
        let bytes = self.bytes()?;
        if bytes == 0 && !matches!(self.data, Data::Owned(_)) {
            std::mem::replace(&mut self.data, Data::Empty).release(&self.core);
        }
        self.data = match std::mem::replace(&mut self.data, Data::Gone) {
            Data::Host(host) => Data::Host(first(host, bytes)),
            Data::Registered(registered, host) if fewer => {
                // Pages can be registered once, so the whole goes first.
                drop(registered);
                let host = first(host, bytes);
                let parts = self.planes.as_ref().map_or([0..bytes, 0..0, 0..0], Planes::parts);
                let registered = Registration::of(&self.core, &host, &parts)?.ok_or_else(|| KernelError::Device {
                    operation: "shrink",
                    reason: "the driver does not register some of the pages that it had registered".to_string(),
                    lost: false,
                })?;
                Data::Registered(registered, host)
            }
            data => data,
        };
        Ok(())
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        // Not in the middle of another thread's recording, whose graph would be taken to have lost memory.
        let entered = self.core.gate().enter();
        if self.recorded.load(Ordering::Relaxed) == self.core.generation() + 1 {
            self.core.forget_graphs();
        }
        std::mem::replace(&mut self.data, Data::Empty).release(&self.core);
        drop(entered);
    }
}

/// The first of some bytes.
fn first(host: HostBytes, bytes: usize) -> HostBytes {
    HostBytes { range: host.range.start..host.range.start + bytes, ..host }
}

/// A copy in `arena`. The caller is inside [`Core::enter`].
fn upload(core: &Arc<Core>, arena: &Arc<Arena>, bytes: &[u8]) -> Result<Block> {
    let block = take(core, arena, bytes.len() as u64)?;
    core.with_staging(|staging| staging.upload(core, block.pointer(), bytes))?;
    Ok(block)
}

/// Keeps the first rows of every matrix, `(matrix, rows)`, and gives the memory of the others back. The matrices are all that lie in
/// `arena`; those that were not uploaded may be among them.
pub(super) fn shrink(core: &Arc<Core>, arena: &Arc<Arena>, weights: &mut [(&mut Weight, usize)]) -> Result<()> {
    let _entered = core.enter()?;
    core.refuse_while_capturing("shrink")?;
    weights.iter().try_for_each(|(weight, rows)| weight.check_kept(*rows))?;
    arena.check_all(weights.iter().filter_map(|(weight, _)| weight.block()))?;
    core.forget_graphs();
    weights.iter_mut().try_for_each(|(weight, rows)| weight.keep(*rows))?;
    let mut kept = Vec::with_capacity(weights.len());
    for (weight, _) in weights.iter_mut() {
        let bytes = weight.bytes()? as u64;
        if let Data::Uploaded(block) = &mut weight.data {
            kept.push((block, bytes));
        }
    }
    let shrunk = arena.shrink(core, &mut kept);
    if shrunk.is_err() {
        // Some may have been moved over others.
        weights.iter_mut().filter(|(weight, _)| matches!(weight.data, Data::Uploaded(_))).for_each(|(weight, _)| weight.data = Data::Gone);
    }
    shrunk
}
