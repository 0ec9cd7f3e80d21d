//! Signals that reach ckptd are meant for the job: which of them to pass on, and how to stop when the job stops.

use crate::failure::Failure;
use nix::libc;
use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Pid, Signal, getpid, kill_process};
use rustix_libc_wrappers::process::SignalExt;
use std::os::fd::{AsFd, BorrowedFd};

/// A signal as ckptd got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    /// Its number.
    pub signal: i32,
    /// Where it comes from: SI_KERNEL, SI_USER, ... (sigaction(2)).
    pub code: i32,
    /// The sender; 0 when it is outside of our pid namespace.
    pub sender: u32,
}

/// What the decision on a signal depends on, besides the signal.
pub(crate) trait Surroundings {
    /// ckptd leads its session.
    fn leads_session(&self) -> bool;
    /// A process of the job, or ckptd itself.
    fn is_ours(&self, pid: u32) -> bool;
    /// The job's root is stopped.
    fn root_is_stopped(&self) -> bool;
}

impl Received {
    /// Whether the job's root should get it from us, because it has not got it already.
    pub(crate) fn is_for_root(self, around: &impl Surroundings) -> bool {
        match self.signal {
            libc::SIGCHLD => false,
            // The terminal tells the whole foreground group; but when it goes away, only the session's leader.
            libc::SIGHUP if self.code == libc::SI_KERNEL => around.leads_session(),
            libc::SIGINT
            | libc::SIGQUIT
            | libc::SIGTSTP
            | libc::SIGTTIN
            | libc::SIGTTOU
            | libc::SIGWINCH
                if self.code == libc::SI_KERNEL =>
            {
                false
            }
            // Shells wake whole groups, so the root may be up already.
            libc::SIGCONT => around.root_is_stopped(),
            // Timers of ours that came through exec, for one: the job would have them without ckptd.
            _ if self.code == libc::SI_KERNEL => true,
            // A process of the job that signals its group reaches its fellows itself.
            _ => self.sender == 0 || !around.is_ours(self.sender),
        }
    }
}

/// All signals, blocked and read from a descriptor.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
    original: SigSet,
}

impl Signals {
    /// Blocks every signal. Those that were ignored are received all the same, and the job ignores them in turn.
    pub(crate) fn block() -> Result<Self, Failure> {
        let failure = |errno| Failure::because("cannot take over the signals of the job", errno);
        let original = SigSet::all()
            .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)
            .map_err(failure)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&SigSet::all(), flags).map_err(failure)?;
        Ok(Self { fd, original })
    }

    /// The signal mask before.
    pub(crate) fn original(&self) -> &SigSet {
        &self.original
    }

    /// The next signal that has come.
    pub(crate) fn next(&self) -> Option<Received> {
        let info = self.fd.read_signal().ok().flatten()?;
        Some(Received {
            signal: info.ssi_signo as i32,
            code: info.ssi_code,
            sender: info.ssi_pid,
        })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sends a signal by number; a process that has ended is no error.
pub(crate) fn send(pid: u32, signal: i32) {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let (Some(target), Some(signal)) = (target, Signal::from_raw(signal))
        && let Err(error) = kill_process(target, signal)
    {
        tracing::debug!(
            "cannot send signal {} to process {pid}: {error}",
            signal.as_raw()
        );
    }
}

/// Stops ckptd as the job's root has stopped, so that the shell that waits for us sees it; returns when it goes on.
///
/// Only for the terminal's signals. Who sends SIGSTOP to the root alone will send SIGCONT to the root alone,
/// and would leave us stopped for ever; who sends it to the group stops us too.
pub(crate) fn stop_like(signal: i32) {
    let stop = match signal {
        libc::SIGTSTP => NixSignal::SIGTSTP,
        libc::SIGTTIN => NixSignal::SIGTTIN,
        libc::SIGTTOU => NixSignal::SIGTTOU,
        _ => return,
    };
    send(getpid().as_raw_nonzero().get().unsigned_abs(), signal);
    let set = SigSet::from_iter([stop]);
    let _ = set.thread_unblock();
    let _ = set.thread_block();
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Around {
        leader: bool,
        stopped: bool,
    }

    impl Surroundings for Around {
        fn leads_session(&self) -> bool {
            self.leader
        }
        fn is_ours(&self, pid: u32) -> bool {
            pid == 10
        }
        fn root_is_stopped(&self) -> bool {
            self.stopped
        }
    }

    const SHELL: Around = Around {
        leader: false,
        stopped: false,
    };

    fn passes(signal: i32, code: i32, sender: u32, around: &Around) -> bool {
        Received {
            signal,
            code,
            sender,
        }
        .is_for_root(around)
    }

    #[test]
    fn the_terminal_has_told_the_job_itself() {
        for signal in [
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGTSTP,
            libc::SIGWINCH,
            libc::SIGHUP,
        ] {
            assert!(!passes(signal, libc::SI_KERNEL, 0, &SHELL));
        }
    }

    #[test]
    fn a_hangup_reaches_only_the_leader_of_the_session() {
        assert!(passes(
            libc::SIGHUP,
            libc::SI_KERNEL,
            0,
            &Around {
                leader: true,
                ..SHELL
            }
        ));
    }

    #[test]
    fn what_others_send_is_passed_on() {
        for signal in [
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGUSR1,
            libc::SIGTSTP,
            libc::SIGRTMIN() + 3,
        ] {
            assert!(passes(signal, libc::SI_USER, 99, &SHELL));
            assert!(passes(signal, libc::SI_USER, 0, &SHELL));
            assert!(passes(signal, libc::SI_QUEUE, 99, &SHELL));
        }
    }

    #[test]
    fn what_the_job_sends_to_its_group_is_not_doubled() {
        assert!(!passes(libc::SIGTERM, libc::SI_USER, 10, &SHELL));
    }

    #[test]
    fn an_alarm_set_before_exec_is_the_jobs() {
        assert!(passes(libc::SIGALRM, libc::SI_KERNEL, 0, &SHELL));
    }

    #[test]
    fn a_continue_is_for_a_stopped_root() {
        assert!(!passes(libc::SIGCONT, libc::SI_USER, 99, &SHELL));
        assert!(passes(
            libc::SIGCONT,
            libc::SI_USER,
            99,
            &Around {
                stopped: true,
                ..SHELL
            }
        ));
    }

    #[test]
    fn the_end_of_a_child_is_ours() {
        assert!(!passes(libc::SIGCHLD, libc::CLD_EXITED, 10, &SHELL));
    }
}
