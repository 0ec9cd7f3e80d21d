//! What is noted of a job that runs.

use crate::process::ProcessId;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;

/// What state.json says of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The job's name.
    pub name: String,
    /// The process whose exit status is the job's; none while the job is being started or restored.
    pub root: Option<ProcessId>,
    /// The init of the job's own pid namespace, if it has one.
    pub init: Option<ProcessId>,
    /// The ckptd that started or restored it.
    pub supervisor: ProcessId,
    /// The store its checkpoints go to, absolute.
    pub dir: PathBuf,
    /// The command line, for people.
    pub command: Vec<String>,
    /// When it was started or restored: nanoseconds since the epoch.
    pub started: u64,
    /// Its entry's directory.
    #[serde(skip)]
    pub entry: PathBuf,
}

impl State {
    /// What the entry says, if there is one that can be read.
    fn read(entry: PathBuf) -> Option<Self> {
        let text = fs::read(entry.join("state.json")).ok()?;
        let state: Self = serde_json::from_slice(&text).ok()?;
        Some(Self { entry, ..state })
    }

    /// Where the supervisor listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.entry.join("control.sock")
    }

    /// The root, while it runs.
    pub(crate) fn live_root(&self) -> Option<ProcessId> {
        self.root.filter(|root| root.is_alive())
    }

    /// The root has ended, and the supervisor is about to.
    pub(super) fn is_ending(&self) -> bool {
        self.root.is_some() && self.live_root().is_none()
    }

    fn is_stale(&self) -> bool {
        !self.supervisor.is_alive() && self.live_root().is_none()
    }
}

/// What an entry says, unless it is stale.
pub(super) fn live(entry: PathBuf) -> Option<State> {
    State::read(entry).filter(|state| !state.is_stale())
}
