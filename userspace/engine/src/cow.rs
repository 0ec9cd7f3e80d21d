//! A copy of a process's memory, made by fork(2) in no time and read while the process runs on.

use remote::{Program, Running, Stopped, Waited, sys};

use crate::CheckpointError;
use crate::capture::{borrow, lend};
use crate::freeze::{Frozen, failed};
use crate::procfs::Status;

/// A child of a process of the job that never runs: its memory stays as it was. Its parent hears of neither its birth nor its
/// end (it has no exit signal, so that only a wait for `__WALL` children would see it).
pub(crate) struct Copy {
    parent: u32,
    /// As we see it.
    pub(crate) pid: u32,
    /// As its parent sees it.
    inner: u64,
    task: Option<Stopped>,
}

impl Copy {
    /// Copies the memory of a process of a frozen job to which the stub is lent. Mappings that a fork leaves out or wipes
    /// (`MADV_DONTFORK`, `MADV_WIPEONFORK`) are not in the copy.
    pub(crate) fn of(frozen: &mut Frozen, parent: u32) -> Result<Self, CheckpointError> {
        borrow(frozen, parent)?;
        let lent = frozen.processes.get(&parent).and_then(|p| p.lent.as_ref());
        let ours = lent.map_or(0..0, remote::live::Lent::range);
        let mut program = Program::new();
        // Should we die before the child is in our hands, it finds no program to go on with, and dies of it.
        program.must(
            libc::SYS_madvise,
            &[
                ours.start.into(),
                (ours.end - ours.start).into(),
                libc::MADV_WIPEONFORK.into(),
            ],
            "keep the program out of the copy",
        );
        let made = program.must(libc::SYS_clone, &[0.into(); 5], "copy the process");
        let (outcome, new) = frozen.run_making(parent, &program)?;
        let pid = new.ok_or(CheckpointError::Gone { pid: parent })?;
        let mut copy = Self {
            parent,
            pid,
            inner: outcome.result(made).unwrap_or(0),
            task: None,
        };
        let waiting = || failed(format!("waiting for the copy of process {parent}"));
        match Running::attached(pid as i32).wait().map_err(waiting())? {
            Waited::Stopped(task) => {
                task.set_options(libc::PTRACE_O_EXITKILL)
                    .map_err(waiting())?;
                copy.task = Some(task);
                Ok(copy)
            }
            Waited::Gone => Err(CheckpointError::Gone { pid }),
        }
    }

    /// Ends it, and has its parent, which runs again, take note of that.
    fn end(&mut self) -> Result<(), CheckpointError> {
        let _ = sys::kill(self.pid as i32, libc::SIGKILL);
        if let Some(task) = self.task.take() {
            // Its end, as its tracer; then it is its parent's.
            let _ = Running::attached(task.tid()).wait();
        }
        let status = Status::read(self.parent);
        let status = status.map_err(failed(format!("reading /proc/{}/status", self.parent)))?;
        let mut frozen = Frozen::leader(self.parent)?;
        let process = frozen.processes.get_mut(&self.parent);
        let process = process.ok_or(CheckpointError::Gone { pid: self.parent })?;
        lend(process, &status)?;
        let mut program = Program::new();
        program.try_call(
            libc::SYS_wait4,
            &[
                self.inner.into(),
                0.into(),
                (libc::__WALL | libc::WNOHANG).into(),
                0.into(),
            ],
            "reap the copy",
        );
        frozen.run(self.parent, &program).map(drop)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            // It is reaped with its parent then.
            tracing::debug!(
                "the copy of process {} stays a zombie: {error}",
                self.parent
            );
        }
    }
}
