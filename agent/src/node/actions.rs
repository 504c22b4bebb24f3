//! What the controller asks for, done: pruning, the holdout, swaps between the slots.

use std::sync::Arc;
use std::time::Duration;

use espalier_kernels::{Purpose, Reservation};
use espalier_models::Artifact;

use super::background::CascadeJob;
use super::{Node, artifact_id, stages_folder};
use crate::check::StaticCheck;
use crate::control::{Action, Event, Reading};
use crate::error::{AgentError, Result};
use crate::prune::{CascadeOptions, CascadeResult, Target};
use crate::store::Active;

impl Node {
    /// What the end of a cascade is to the controller.
    pub(super) fn compressed(&mut self, done: Result<CascadeResult>) -> Event {
        match done {
            Ok(result) => {
                let split = result.split;
                self.note(format!("pruned to {} layers, {} heads, {} channels", split.layers, split.heads, split.channels));
                self.result = Some(result);
                Event::CompressionDone
            }
            Err(AgentError::Cancelled) => Event::CompressionCancelled,
            Err(error) => {
                self.note(format!("pruning failed: {error}"));
                Event::CompressionFailed(error.to_string())
            }
        }
    }

    pub(super) fn step(&mut self, now: Duration, reading: &Reading, event: Option<Event>) -> Result<()> {
        let before = self.controller.state();
        let actions = self.controller.step(now, reading, event);
        let after = self.controller.state();
        if before != after {
            self.note(format!("{before} → {after}"));
        }
        for action in actions {
            if let Some(answer) = self.act(action)? {
                self.step(now, reading, Some(answer))?;
            }
        }
        Ok(())
    }

    /// Carries an action out; an answer that is known at once is returned.
    fn act(&mut self, action: Action) -> Result<Option<Event>> {
        match action {
            Action::StartCompression { fit_bytes } => {
                Ok(self.start(fit_bytes).err().map(|error| Event::CompressionFailed(error.to_string())))
            }
            Action::CancelCompression => {
                if let Some(background) = &self.background {
                    background.stop.ask();
                }
                Ok(None)
            }
            Action::JudgeCandidate => Ok(Some(self.judge())),
            Action::Swap => Ok(self.swap().err().map(|error| Event::SwapFailed(error.to_string()))),
            Action::Commit => Ok(Some(self.commit())),
            Action::RollBack => Ok(self.serve(self.store.active()).err().map(|error| Event::SwapFailed(error.to_string()))),
            Action::RestoreFactory => {
                self.store.restore_factory()?;
                Ok(self.serve(Active::Factory).err().map(|error| Event::SwapFailed(error.to_string())))
            }
            // One-level artifacts have nothing to drop to; the controller is given no levels.
            Action::DropLevel(_) | Action::ClimbLevel(_) => Ok(None),
        }
    }

    fn start(&mut self, fit_bytes: u64) -> Result<()> {
        let Some(setup) = &self.prune else {
            return Err(AgentError::Usage("there are no calibration data; give --data, so that the node can prune".into()));
        };
        let (artifact, mapped) = self.factory()?;
        let report = StaticCheck::new(&artifact.manifest().architecture, &artifact.manifest().shape());
        let beside_bytes = self.source_bytes + self.serving.overhead_bytes();
        let job = CascadeJob {
            artifact,
            mapped,
            options: CascadeOptions { target: Target::Serving(fit_bytes.saturating_sub(beside_bytes)), ..setup.options.clone() },
            calibration: setup.calibration.clone(),
            holdout: setup.holdout.clone(),
            budget: self.budget.clone(),
            device: self.serving.device()?,
            may_move: self.serving.engines.may_move(),
            threads: setup.threads,
            folder: stages_folder(&self.store),
            keep_stages: setup.keep_stages,
            candidate: self.store.candidate_path(),
        };
        self.background = Some(job.start((setup.progress)())?);
        let holds = if report.holds_per_component() {
            "holds for every head and channel by itself"
        } else {
            "holds for coupled units only; they leave together"
        };
        self.note(format!("SIA check: structural independence {holds}"));
        self.note(format!("pruning to serve within {fit_bytes} bytes, {beside_bytes} of them for source and engine"));
        Ok(())
    }

    /// The factory artifact: the map that the engine serves from, or, where another is served, a new one with its reservation.
    fn factory(&self) -> Result<(Arc<Artifact>, Option<Reservation>)> {
        if self.store.active() == Active::Factory
            && let Some(served) = self.serving.served.upgrade()
        {
            return Ok((served, None));
        }
        let artifact = Artifact::open(&self.store.path(Active::Factory))?;
        let mapped = Reservation::new(self.budget.clone(), Purpose::Weights, artifact.file_bytes())?;
        Ok((Arc::new(artifact), Some(mapped)))
    }

    fn judge(&mut self) -> Event {
        let (Some(result), Some(setup)) = (&self.result, &self.prune) else {
            return Event::HoldoutRefused("there is no candidate".into());
        };
        let Some(last) = result.stages.last() else { return Event::HoldoutRefused("there is no candidate".into()) };
        let (dense, small, most) = (result.dense_accuracy, last.accuracy, setup.max_drop);
        let said = format!("holdout accuracy {:.1} % after {:.1} %", small * 100.0, dense * 100.0);
        if dense - small <= most {
            self.note(format!("accepted: {said}"));
            Event::HoldoutAccepted
        } else {
            let refusal = format!("{said}: a loss of more than {:.1} points", most * 100.0);
            self.note(format!("refused: {refusal}"));
            Event::HoldoutRefused(refusal)
        }
    }

    fn swap(&mut self) -> Result<()> {
        let path = self.store.candidate_path();
        let id = artifact_id(&path).map_err(AgentError::Usage)?;
        self.store.begin_candidate(id)?;
        self.store.begin_probation()?;
        self.awaited = Some(self.serving.offer(&path)?);
        Ok(())
    }

    fn serve(&mut self, active: Active) -> Result<()> {
        self.awaited = Some(self.serving.offer(&self.store.path(active))?);
        Ok(())
    }

    fn commit(&mut self) -> Event {
        let slot = self.store.inactive();
        let committed = match self.store.candidate() {
            Some(candidate) => self.store.commit(slot, candidate.id).map_err(|error| error.to_string()),
            None => Err("the store has no candidate".into()),
        };
        match committed {
            Ok(()) => {
                self.committed += 1;
                if self.limit_after_commit {
                    self.budget.set_limit(self.budget.goal());
                }
                self.note(format!("committed to slot {slot:?}"));
                Event::Committed
            }
            Err(reason) => Event::CommitFailed(reason),
        }
    }

    /// Ends background work and waits for it.
    pub(super) fn cancel(&mut self) {
        if let Some(background) = self.background.take() {
            background.stop.ask();
            let _ = background.thread.join();
        }
    }
}
