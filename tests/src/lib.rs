//! What the scenarios share: building subjects, starting jobs under the real `ckptd`, killing them, bringing them back.
//!
//! Set `CKPTD_BIN` to test another binary than the one beside the test programs. Failures panic with everything that was
//! said and leave the job's directory in place; its path is in the message.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used)] // A test helper fails by panicking.

mod command;
mod compare;
mod job;
pub mod memory;
mod mode;
mod processes;
mod storage;
mod subject;

pub use command::{Output, binary, run, show_command};
pub use compare::same_without_bpf;
pub use job::{Job, Place};
pub use mode::{Pids, Way, interrupt, sabotaged, uninterrupted};
pub use processes::{alive, kill_marked, marked, state};
pub use storage::{Storage, Trouble};
pub use subject::{Compiler, Subject, helper, manifest_dir};

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before a test calls it hung. Generous: it bounds hangs and measures nothing.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Polls `look` until it gives something; panics after [`PATIENCE`].
#[track_caller]
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_at_most(PATIENCE, look).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Polls `look` until it gives something, at most for `limit`.
pub fn wait_at_most<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says past the test framework's capture that this machine cannot do a test, and how many such there were so far.
pub fn skip(what: &str, why: &str) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    let line = format!("SKIPPED {what}: {why} ({count} skipped so far)\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Whether the tests run as root.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
