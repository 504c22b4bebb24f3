//! Criteria: what scores a unit.
//!
//! | module | criterion |
//! |--|--|
//! | [`lcr`] | layer change ratio, and block influence beside it |
//! | [`l1`] | L1 norm of a unit's coupled slice |

pub mod l1;
pub mod lcr;
