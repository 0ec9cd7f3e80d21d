//! The supervisor's eye on its job between checkpoints: what could not be checkpointed is told at once, and noted for `ckptd list`.

use super::taker::Schedule;
use crate::bpf::Bpf;
use crate::output::{count, tell};
use crate::registry::write_atomically;
use crate::take::Target;
use engine::{Lookout, Refusal};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks; a job that ends sooner is not looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// Of one processor, looking takes at most one part in so many.
const SHARE: u32 = 250;
/// However long a look takes.
const LONGEST: Duration = Duration::from_secs(30);

/// What is known of a job that runs, as `ckptd list` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watched {
    /// For what a checkpoint would be refused now.
    pub obstacles: Vec<Obstacle>,
    /// How its processes are followed; none without eBPF.
    pub followed: Option<Followed>,
}

/// Something that cannot be checkpointed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Obstacle {
    /// The process that holds it.
    pub pid: u32,
    pub what: String,
    pub why: String,
    pub advice: String,
}

/// A job's processes, as the kernel tells of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Followed {
    /// How many there are.
    pub processes: usize,
    /// For how many there was no room; those are looked for in another way.
    pub missed: u64,
    /// What tells of changes within processes.
    pub hooks: String,
}

impl Watched {
    /// What the supervisor of an entry of the run directory has noted.
    pub(crate) fn read(entry: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file(entry)).ok()?).ok()
    }
}

impl Watched {
    /// One line for people on processes that are not followed.
    pub(crate) fn missed(&self) -> Option<String> {
        let missed = self.followed.as_ref()?.missed;
        let whom = count(missed, "process was", "processes were");
        (missed > 0).then(|| format!("{whom} not followed, for lack of room"))
    }
}

impl Obstacle {
    /// One line for people.
    pub(crate) fn summary(&self) -> String {
        let Self {
            pid,
            what,
            why,
            advice,
        } = self;
        format!("process {pid}: {what}: {why}; {advice}")
    }
}

impl From<Refusal> for Obstacle {
    fn from(refusal: Refusal) -> Self {
        Self {
            pid: refusal.pid,
            what: refusal.what,
            why: refusal.why,
            advice: refusal.advice,
        }
    }
}

fn file(entry: &Path) -> PathBuf {
    entry.join("watched.json")
}

/// Looks from time to time.
pub(super) struct Watch {
    name: String,
    target: Target,
    entry: PathBuf,
    lookout: Lookout,
    told: HashSet<Obstacle>,
    noted: Option<Watched>,
    without: bool,
    /// When it is time again.
    pub(super) next: Instant,
}

impl Watch {
    pub(super) fn new(name: &str, target: Target, entry: &Path, schedule: &Schedule) -> Self {
        Self {
            name: name.to_owned(),
            target,
            entry: entry.to_owned(),
            lookout: Lookout::default(),
            told: HashSet::new(),
            noted: None,
            without: schedule.order.no_bpf,
            next: Instant::now() + INTERVAL,
        }
    }

    /// Looks, if it is time.
    pub(super) fn look(&mut self, bpf: &Bpf) {
        let begun = Instant::now();
        if begun < self.next {
            return;
        }
        let tracker = bpf.loaded();
        // What loads now is not waited for.
        if tracker.is_some() || self.without || bpf.is_refused() {
            let Target { scope, stdio_of } = self.target;
            let refusals = self.lookout.look(scope, stdio_of, tracker);
            let picture = tracker.and_then(tracker::Tracker::picture);
            let followed = picture.and_then(|picture| {
                Some(Followed {
                    processes: picture.processes().ok()?.len(),
                    missed: picture.missed().ok()?,
                    hooks: picture.hooks().to_string(),
                })
            });
            self.note(Watched {
                obstacles: refusals.into_iter().map(Obstacle::from).collect(),
                followed,
            });
        }
        let pause = (begun.elapsed() * SHARE).clamp(INTERVAL, LONGEST);
        self.next = Instant::now() + pause;
    }

    fn note(&mut self, watched: Watched) {
        for obstacle in &watched.obstacles {
            if self.told.insert(obstacle.clone()) {
                tell(&format!(
                    "ckptd: as it is, {} cannot be checkpointed: {}\n",
                    self.name,
                    obstacle.summary()
                ));
            }
        }
        if self.noted.as_ref() == Some(&watched) {
            return;
        }
        let text = serde_json::to_vec(&watched).unwrap_or_default();
        if let Err(error) = write_atomically(&file(&self.entry), &text) {
            tracing::debug!("cannot note what the job holds: {error}");
        }
        self.noted = Some(watched);
    }
}
