//! Keeping a job's checkpoints in order: old ones go, and the room that they took is given back.

use images::{Compacted, Job, Keep, Pruned, Result};

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
