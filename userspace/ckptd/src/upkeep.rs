//! Keeping a job's checkpoints in order: old ones go, and the room that they took is given back.

use crate::output::tell;
use images::{Compacted, Error, Job, Keep, Pruned, Result};
use std::thread::JoinHandle;

/// Removes the checkpoints that `keep` does not keep and what nobody needs any more, and rewrites segments that are
/// mostly dead, on this thread, at idle I/O priority from now on. Checkpoints may be taken meanwhile; `go_on` is asked
/// again and again, and ends the rewriting by saying no.
pub(crate) fn tidy(
    job: &Job,
    keep: &Keep,
    go_on: &dyn Fn() -> bool,
) -> Result<(Pruned, Compacted)> {
    // Where the kernel does not know I/O priorities, it merely takes its share.
    let _ = engine::idle_io();
    let pruned = job.prune(keep, false)?;
    Ok((pruned, job.compact(go_on)?))
}

/// The thread of a supervisor that does so after a checkpoint. It may end at any moment with its process: what it leaves
/// behind then, the next one collects.
#[derive(Default)]
pub(crate) struct Upkeep {
    thread: Option<JoinHandle<()>>,
}

impl Upkeep {
    /// Begins, unless the last one is still at it.
    pub(crate) fn begin(&mut self, job: Job, keep: Keep) {
        if self
            .thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
        {
            return;
        }
        self.thread = Some(std::thread::spawn(move || {
            match tidy(&job, &keep, &|| true) {
                // The next checkpoint is under way already; it will be followed by another attempt.
                Ok(_) | Err(Error::Busy { .. }) => {}
                Err(error) => tell(&format!(
                    "ckptd: the checkpoints of {} cannot be tidied: {error}\n",
                    job.name()
                )),
            }
        }));
    }
}
