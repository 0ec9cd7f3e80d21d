//! Why a command failed, as people, scripts and the other end of the control socket see it.

use engine::{CheckpointError, Refusal, RestoreError};
use miette::{MietteHandler, MietteHandlerOpts, ReportHandler};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{ErrorKind, IsTerminal};

/// Exit statuses of ckptd itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", from = "u8")]
#[repr(u8)]
pub(crate) enum Exit {
    /// Something went wrong; the job is unharmed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// A checkpoint is damaged, or this host cannot restore it.
    Image = 3,
    /// The program to run cannot be executed (as shells say it).
    CannotExecute = 126,
    /// The program to run is not there (as shells say it).
    NotFound = 127,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        exit as Self
    }
}

impl From<u8> for Exit {
    fn from(status: u8) -> Self {
        match status {
            2 => Self::Usage,
            3 => Self::Image,
            126 => Self::CannotExecute,
            127 => Self::NotFound,
            _ => Self::Failed,
        }
    }
}

/// One thing in the job or on this host that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Obstacle {
    /// The process.
    pub pid: u32,
    /// What it holds.
    pub what: String,
    /// Why that is in the way.
    pub why: String,
    /// What the user can do.
    pub advice: String,
}

impl From<Refusal> for Obstacle {
    fn from(refusal: Refusal) -> Self {
        let Refusal {
            pid,
            what,
            why,
            advice,
        } = refusal;
        Self {
            pid,
            what,
            why,
            advice,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid != 0 {
            write!(f, "process {}: ", self.pid)?;
        }
        write!(f, "{}: {}", self.what, self.why)?;
        if !self.advice.is_empty() {
            write!(f, "; {}", self.advice)?;
        }
        Ok(())
    }
}

/// An error on its way to the user: what, where, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What went wrong, where and why.
    #[serde(rename = "error")]
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Each thing that is in the way, when there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Obstacle>,
    /// ckptd's exit status.
    pub exit: Exit,
}

impl Failure {
    /// A failure with exit status 1.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
            refusals: Vec::new(),
            exit: Exit::Failed,
        }
    }

    /// `doing` failed with `error`.
    pub(crate) fn because(doing: impl fmt::Display, error: impl std::error::Error) -> Self {
        Self::new(format!("{doing}: {}", chain(&error)))
    }

    /// Adds what the user can do.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Says how to get the right, when it is one that is missing.
    fn rights(self, error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::PermissionDenied => self.help(
                "run ckptd as root, or give it CAP_CHECKPOINT_RESTORE and CAP_SYS_PTRACE; `ckptd doctor` says how",
            ),
            _ => self,
        }
    }

    /// Ends ckptd with this status.
    pub(crate) fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// Says first what was being done.
    pub(crate) fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// To standard error for people, to standard output as JSON for scripts.
    pub(crate) fn print(&self, json: bool) {
        if json {
            crate::output::print_json(self);
            return;
        }
        // Lines are folded for people only: a script may look for a path in them.
        let terminal = std::io::stderr().is_terminal();
        let handler = MietteHandlerOpts::new()
            .wrap_lines(terminal)
            .break_words(false)
            .build();
        eprint!("{:?}", Shown(self, &handler));
        for obstacle in &self.refusals {
            eprintln!("  {obstacle}");
        }
    }
}

/// An error and its sources in one line, without saying twice what an outer one already quotes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A failure as a handler shows it.
struct Shown<'a>(&'a Failure, &'a MietteHandler);

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.debug(self.0, f)
    }
}

impl miette::Diagnostic for Failure {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help
            .as_ref()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

impl From<images::Error> for Failure {
    fn from(error: images::Error) -> Self {
        let exit = if error.is_damage() {
            Exit::Image
        } else {
            Exit::Failed
        };
        let failure = Self::new(chain(&error)).exit(exit);
        match exit {
            Exit::Image => failure.help(
                "`ckptd verify` tells what is damaged; an older checkpoint may be whole: `ckptd list`, then `ckptd restore --at SEQ`",
            ),
            _ => failure,
        }
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Refused(refusals) => Self {
                message:
                    "the job holds what cannot be restored; nothing was written and the job runs on"
                        .into(),
                help: None,
                refusals: refusals.into_iter().map(Obstacle::from).collect(),
                exit: Exit::Failed,
            },
            CheckpointError::NotPermitted { ref advice, .. } => {
                let help = Some(advice.clone());
                Self {
                    help,
                    ..Self::new(chain(&error))
                }
            }
            CheckpointError::Store(error) => Self {
                exit: Exit::Failed,
                ..Self::from(error)
            },
            CheckpointError::System { ref source, .. } => Self::new(chain(&error)).rights(source),
            error @ CheckpointError::Gone { .. } => Self::new(chain(&error)),
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Image(error) => Self::from(error),
            RestoreError::Refused(refusals) => Self {
                message: "this host cannot restore the job; nothing was started".into(),
                help: None,
                refusals: refusals.into_iter().map(Obstacle::from).collect(),
                exit: Exit::Image,
            },
            RestoreError::System { ref source, .. } => Self::new(chain(&error)).rights(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_restore_is_an_image_failure_and_lists_every_reason() {
        let refusal = |pid| Refusal {
            pid,
            what: "descriptor 5 (socket:[77])".into(),
            why: "sockets are not supported".into(),
            advice: "close it first".into(),
        };
        let failure = Failure::from(RestoreError::Refused(vec![refusal(7), refusal(8)]));
        assert_eq!(failure.exit, Exit::Image);
        assert_eq!(
            failure.refusals[1].to_string(),
            "process 8: descriptor 5 (socket:[77]): sockets are not supported; close it first"
        );
    }

    #[test]
    fn failures_survive_the_control_socket() {
        let failure = Failure::new("no").help("try again").exit(Exit::Image);
        let line = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&line).unwrap(), failure);
    }

    #[test]
    fn a_missing_right_is_named() {
        let source = std::io::Error::from_raw_os_error(nix::libc::EPERM);
        let error = RestoreError::System {
            doing: "making process 7".into(),
            source,
        };
        assert!(
            Failure::from(error)
                .help
                .unwrap()
                .contains("CAP_CHECKPOINT_RESTORE")
        );
    }

    #[test]
    fn a_source_is_said_once() {
        let inner = std::io::Error::other("disk on fire");
        let error = CheckpointError::System {
            doing: "read /proc/7/maps".into(),
            source: inner,
        };
        assert_eq!(
            Failure::from(error).message,
            "read /proc/7/maps: disk on fire"
        );
    }
}
