//! How a job ended, and how ckptd ends the same way.

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::SigSet;
use rustix::process::{Signal, WaitStatus, getpid, kill_process};
use rustix_libc_wrappers::process::SignalExt;
use std::fmt;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With this exit status, 0 to 255.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl Ended {
    /// None when the process has not ended but stopped or gone on.
    pub(crate) fn from_status(status: WaitStatus) -> Option<Self> {
        let exited = status.exit_status().map(Self::Exited);
        exited.or_else(|| status.terminating_signal().map(Self::Killed))
    }

    /// Ends this process as the job ended, without a core dump of its own.
    pub(crate) fn mirror(self) -> ! {
        let signal = match self {
            Self::Exited(code) => std::process::exit(code),
            Self::Killed(signal) => signal,
        };
        // The init of a pid namespace is immune to its own signals.
        if std::process::id() != 1 {
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            // Where cores are piped to a program, only this keeps it from being called.
            let _ = nix::sys::prctl::set_dumpable(false);
            if signal_hook::low_level::emulate_default_handler(signal).is_err() {
                // A real-time signal: nothing has changed its default, which is to end the process.
                let _ = SigSet::all().thread_unblock();
                if let Some(signal) = Signal::from_raw(signal) {
                    let _ = kill_process(getpid(), signal);
                }
            }
        }
        std::process::exit(128 + signal)
    }
}

/// As `exited 3` or `killed 9`.
impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited {code}"),
            Self::Killed(signal) => write!(f, "killed {signal}"),
        }
    }
}
