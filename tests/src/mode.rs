//! The ways in which a subject is interrupted.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::{Job, Subject, helper, skip};

/// How checkpoints are taken and restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// One whole checkpoint, the job running on; then everything is killed; one eager restore.
    Full,
    /// The same, restored while its memory is still in the image.
    Lazy,
    /// Several incremental checkpoints, the job running on; then everything is killed; the last is restored, saved incrementally on top
    /// of that and killed again, and restored once more.
    Chain,
    /// As the first, killed by `checkpoint --kill`.
    Killed,
    /// Not killed at all: the checkpointed job itself runs to its end.
    RunsOn,
    /// Started by somebody else, and checkpointed by its process id.
    ByPid,
}

impl Way {
    /// The arguments of each checkpoint, in order.
    fn checkpoints(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Full | Self::Lazy | Self::RunsOn | Self::ByPid => &[&[]],
            Self::Chain => &[&["--incremental"], &["--incremental"], &["--incremental"]],
            Self::Killed => &[&["--kill"]],
        }
    }

    /// The arguments of the restore; none without one.
    fn restore(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Chain => Some(&["--incremental"]),
            Self::Full | Self::Killed | Self::ByPid => Some(&[]),
            Self::Lazy => Some(&["--lazy"]),
            Self::RunsOn => None,
        }
    }
}

/// Whether the job's process ids are free when it is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pids {
    /// As the job left them.
    Free,
    /// Taken by others, the root's first of all.
    Taken,
}

/// Runs a subject, interrupts it, and expects a PASS.
///
/// # Panics
/// When anything else happens.
pub fn interrupt(subject: &Subject, way: Way, pids: Pids) {
    if way == Way::ByPid && subject.orphans {
        return skip(
            subject.name,
            "its orphans are no descendants of the process",
        );
    }
    if way == Way::ByPid && !crate::is_root() {
        return skip(subject.name, "only root may checkpoint any process");
    }
    let started = match way {
        Way::ByPid => Job::start_alone(subject, &[]),
        Way::Full | Way::Lazy | Way::Chain | Way::Killed | Way::RunsOn => Job::start(subject),
    };
    let Some(mut job) = started else { return };
    let taken = job.processes();
    for arguments in way.checkpoints() {
        let _ = job.checkpoint(arguments).expect(0);
    }
    let Some(arguments) = way.restore() else {
        job.go();
        return job.finish();
    };
    job.kill_all();
    let _holder = match pids {
        Pids::Free => None,
        Pids::Taken => match hold(&taken) {
            Ok(holder) => Some(holder),
            Err(why) => return skip(subject.name, &why),
        },
    };
    if way == Way::Chain {
        job.restore(arguments);
        job.await_running();
        let _ = job.checkpoint(&["--incremental", "--kill"]).expect(0);
        job.kill_all();
    }
    job.go();
    job.restore(arguments);
    job.finish();
}

/// Runs a subject without ckptd, to its PASS.
///
/// # Panics
/// When anything else happens.
pub fn uninterrupted(subject: &Subject) {
    if let Some(mut job) = Job::start_alone(subject, &[]) {
        job.go();
        job.finish();
    }
}

/// Runs a subject that damages its own state, and expects that it notices.
///
/// # Panics
/// When it does not.
pub fn sabotaged(subject: &Subject) {
    if let Some(mut job) = Job::start_alone(subject, &[("SUBJECT_SABOTAGE", "1")]) {
        job.go();
        let code = job.wait();
        assert!(
            code == 1 && job.output().contains("DIFF"),
            "the damage went unnoticed\n{job}"
        );
    }
}

/// A process that holds process ids, killed when this is dropped.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Takes `pids`; `Err` says why that is not possible.
fn hold(pids: &[i32]) -> Result<Holder, String> {
    let mut command = Command::new(helper("holdpid"));
    command
        .args(pids.iter().map(ToString::to_string))
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut child = command.spawn().expect("holdpid");
    let mut line = String::new();
    let _ = BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line);
    let holder = Holder(child);
    if line == "HELD\n" {
        Ok(holder)
    } else {
        Err("process ids cannot be taken (CAP_CHECKPOINT_RESTORE)".into())
    }
}
