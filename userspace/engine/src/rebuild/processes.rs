//! The tree of processes, and those that have ended.

use remote::seed::Birth;
use remote::stub::{self};
use remote::{Arg, Program, RunError, Waited, sys};

use super::{Builder, INIT, broke, failed, missing};
use crate::{RestoreError, tree};

impl Builder<'_> {
    pub(super) fn tree(&mut self, step: &tree::Step) -> Result<(), RestoreError> {
        let simple = |nr: i64, args: &[Arg], label: &str| {
            let mut program = Program::new();
            program.must(nr, args, label);
            program
        };
        match *step {
            tree::Step::Spawn { pid } if self.plan.namespace => {
                self.fork(INIT, pid, libc::SIGCHLD as u32)
            }
            tree::Step::Spawn { pid } => {
                let birth = Birth {
                    ids: vec![pid as i32],
                    namespaces: 0,
                    maps: Vec::new(),
                    keep_stdio: true,
                };
                self.seed(pid, &birth, (pid as i32, pid as i32))
            }
            tree::Step::Fork {
                parent,
                pid,
                exit_signal,
            } => self.fork(parent, pid, exit_signal),
            tree::Step::NewSession { pid } => self.run(
                pid,
                "lead a session",
                &simple(libc::SYS_setsid, &[], "setsid"),
            ),
            tree::Step::JoinGroup { pid, group } => {
                let program = simple(
                    libc::SYS_setpgid,
                    &[0.into(), group.into()],
                    &format!("join process group {group}"),
                );
                self.run(pid, "process group", &program)
            }
            tree::Step::Adopt { pid } => {
                let program = simple(libc::SYS_prctl, &[36.into(), 1.into()], "adopt orphans");
                self.run(pid, "adopt", &program)
            }
            tree::Step::End { pid, reaped_by } => {
                let outer = self.tasks.get(&pid).map_or(0, |task| task.outer);
                self.exit(pid, 0)?;
                if reaped_by == 0 {
                    // Ours, or the new init's.
                    let _ = nix::sys::wait::waitpid(
                        nix::unistd::Pid::from_raw(outer),
                        Some(
                            nix::sys::wait::WaitPidFlag::__WALL
                                | nix::sys::wait::WaitPidFlag::WNOHANG,
                        ),
                    );
                    return Ok(());
                }
                let mut program = Program::new();
                let all = u64::MAX;
                let options = libc::__WALL;
                let args = [
                    if pid >= tree::HELPERS {
                        all
                    } else {
                        u64::from(pid)
                    }
                    .into(),
                    0.into(),
                    options.into(),
                    0.into(),
                ];
                program.must(libc::SYS_wait4, &args, "wait for it");
                self.run(reaped_by, "helper", &program)
            }
        }
    }

    /// Ends a process by exit.
    pub(super) fn exit(&mut self, pid: u32, code: i32) -> Result<(), RestoreError> {
        let mut program = Program::new();
        program.try_call(libc::SYS_exit_group, &[code.into()], "exit");
        let (task, slot) = self.take(pid)?;
        match stub::run(slot, &program, task, &mut |_| {}) {
            Err(RunError::Gone(_)) => {
                self.tasks.remove(&pid);
                Ok(())
            }
            Err(error) => Err(broke(&self.who(pid), error)),
            Ok(_) => Err(missing(pid)),
        }
    }

    /// Puts a descriptor of a process that has ended at `place` in `pid`.
    pub(super) fn dead(&mut self, pid: u32, place: u32, flags: u32) -> Result<(), RestoreError> {
        let helper = tree::HELPERS;
        self.fork(pid, helper, libc::SIGCHLD as u32)?;
        let inner = self.tasks.get(&helper).map_or(0, |task| task.slot.tid);
        let mut program = Program::new();
        let args = [inner.into(), flags.into()];
        let fd = program.must(libc::SYS_pidfd_open, &args, "open the helper");
        let args = [Arg::Result(fd), place.into(), libc::O_CLOEXEC.into()];
        program.must(libc::SYS_dup3, &args, "keep its descriptor");
        program.must(libc::SYS_close, &[Arg::Result(fd)], "close the other");
        self.run(pid, "a descriptor of a process that has ended", &program)?;
        self.exit(helper, 0)?;
        let mut program = Program::new();
        let args = [inner.into(), 0.into(), libc::__WALL.into(), 0.into()];
        program.must(libc::SYS_wait4, &args, "wait for the helper");
        self.run(pid, "a descriptor of a process that has ended", &program)
    }

    /// Ends a process the way it had ended.
    pub(super) fn zombie(&mut self, pid: u32, wait_status: i32) -> Result<(), RestoreError> {
        let name = self
            .snapshot
            .processes
            .iter()
            .find(|p| p.pid == pid)
            .and_then(|p| p.threads.first())
            .map(|t| t.name.clone());
        let mut program = Program::new();
        let name = program.bytes([&name.unwrap_or_default()[..], &[0]].concat());
        program.must(libc::SYS_prctl, &[15.into(), name.into()], "take its name");
        // A core file was written the first time.
        let none = program.words(&[0, 0]);
        program.must(
            libc::SYS_prlimit64,
            &[0.into(), libc::RLIMIT_CORE.into(), none.into(), 0.into()],
            "write no core file",
        );
        self.run(pid, "end again", &program)?;
        let signal = libc::WTERMSIG(wait_status);
        if libc::WIFEXITED(wait_status) || !(1..=64).contains(&signal) {
            return self.exit(pid, libc::WEXITSTATUS(wait_status));
        }
        let (task, _) = self.take(pid)?;
        // It has stopped for a signal: another one, which must not be blocked, takes its place.
        task.set_signal_mask(0)
            .map_err(failed(format!("process {pid}: unblocking signals")))?;
        let mut running = task
            .resume(signal)
            .map_err(failed(format!("process {pid}: end by signal {signal}")))?;
        if signal == libc::SIGKILL {
            let _ = sys::kill(running.tid(), signal);
        }
        loop {
            match running
                .wait()
                .map_err(failed(format!("process {pid}: end by signal {signal}")))?
            {
                Waited::Gone => break,
                Waited::Stopped(task) => {
                    running = task
                        .resume(signal)
                        .map_err(failed(format!("process {pid}: resuming")))?;
                }
            }
        }
        self.tasks.remove(&pid);
        Ok(())
    }
}
