//! The journal: one small record that says what is served.
//!
//! ```text
//! offset 0   8 bytes   magic and format version, "ESPJRNL1"
//!        8   4 bytes   length of the record in bytes, little-endian
//!       12   n bytes   the record, postcard
//!     12+n   4 bytes   CRC32C of everything before, little-endian
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"ESPJRNL1";
const HEADER_BYTES: usize = 12;
const CRC_BYTES: usize = 4;
/// Longest journal that is read. A record with the longest note has under 2 KiB, so that anything longer is not a journal.
pub(super) const JOURNAL_BYTES: usize = 4096;
/// Longest progress note, in bytes.
pub const NOTE_BYTES: usize = 1024;

/// One of the two places for pruned artifacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Slot {
    /// `slot-a.esp`
    A,
    /// `slot-b.esp`
    B,
}

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Active {
    /// The artifact that the node was set up with.
    Factory,
    /// A pruned artifact.
    Slot(Slot),
}

impl Active {
    /// The artifact's file name in the store's folder.
    pub fn file(self) -> &'static str {
        match self {
            Active::Factory => "factory.esp",
            Active::Slot(Slot::A) => "slot-a.esp",
            Active::Slot(Slot::B) => "slot-b.esp",
        }
    }
}

impl fmt::Display for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Active::Factory => "factory",
            Active::Slot(Slot::A) => "slot A",
            Active::Slot(Slot::B) => "slot B",
        })
    }
}

/// How far a candidate has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The holdout is being asked.
    Verifying,
    /// It answers live windows and can still be rolled back.
    Probation,
}

/// An artifact in the inactive slot that may become the active one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Where it lies.
    pub slot: Slot,
    /// Its artifact id.
    pub id: u64,
    /// How far it has come.
    pub stage: Stage,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Verifying => "being judged",
            Stage::Probation => "on probation",
        };
        write!(f, "{:016x} in {} {stage}", self.id, Active::Slot(self.slot))
    }
}

/// How far the last compression came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps that are done.
    pub step: u32,
    /// What the compression wants to know when it resumes.
    pub note: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub generation: u64,
    pub factory_id: u64,
    pub active: Active,
    pub active_id: u64,
    pub candidate: Option<Candidate>,
    pub progress: Option<Progress>,
}

/// Why a journal cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum JournalError {
    /// Too short, too long or cut.
    #[error("the journal has {found} bytes, which no journal of this version has")]
    Length {
        /// Bytes that were found.
        found: usize,
    },
    /// Another kind of file, or another version.
    #[error("the journal does not start with `ESPJRNL1`: it is of another program version or was overwritten")]
    Magic,
    /// The content is not what was written.
    #[error("the journal's checksum is {found:08x}, but its content has {expected:08x}")]
    Checksum {
        /// What the file says.
        found: u32,
        /// What the content has.
        expected: u32,
    },
    /// The checksum holds but the record is none of this version.
    #[error("the journal's record is none that this program version writes")]
    Record,
}

impl Record {
    /// A new store that serves the factory artifact.
    pub fn new(factory_id: u64) -> Self {
        Self { generation: 0, factory_id, active: Active::Factory, active_id: factory_id, candidate: None, progress: None }
    }

    pub fn encode(&self) -> Result<Vec<u8>, JournalError> {
        let record = postcard::to_stdvec(self).map_err(|_| JournalError::Record)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&record);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        Ok(bytes)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, JournalError> {
        let length = JournalError::Length { found: bytes.len() };
        if bytes.len() < HEADER_BYTES + CRC_BYTES || bytes.len() > JOURNAL_BYTES {
            return Err(length);
        }
        if &bytes[..MAGIC.len()] != MAGIC {
            return Err(JournalError::Magic);
        }
        let (content, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
        let word = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).map_err(|_| length);
        if word(&content[MAGIC.len()..HEADER_BYTES])? as usize != content.len() - HEADER_BYTES {
            return Err(length);
        }
        let (found, expected) = (word(crc)?, crc32c::crc32c(content));
        if found != expected {
            return Err(JournalError::Checksum { found, expected });
        }
        match postcard::take_from_bytes::<Self>(&content[HEADER_BYTES..]) {
            Ok((record, [])) => Ok(record),
            _ => Err(JournalError::Record),
        }
    }
}
