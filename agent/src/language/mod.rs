//! How good a language model is, and what texts mean to it.
//!
//! | module | concern |
//! |--|--|
//! | [`perplexity`] | loss on a text, in windows, or on sequences of their own |
//! | [`sequences`] | lines and FASTA records |
//! | [`tasks`] | questions with answers: multiple choice, and a number at the end of a solution |

use espalier_models::Artifact;
use espalier_models::architecture::Output;

use crate::error::{AgentError, Result};

pub mod perplexity;
pub mod sequences;
pub mod tasks;

/// An error where the artifact is no language model.
pub fn check_language_model(artifact: &Artifact) -> Result<()> {
    match artifact.manifest().architecture.output {
        Output::NextToken { .. } => Ok(()),
        Output::Classes { .. } => {
            let path = artifact.path().display();
            Err(AgentError::Usage(format!("{path} is a signal model; it has no words (see `espalier run` and `espalier eval --data`)")))
        }
    }
}
