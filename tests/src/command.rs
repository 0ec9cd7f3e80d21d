//! Running commands with a limit, and failing with everything they said.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use crate::wait_at_most;

/// The `ckptd` under test: `CKPTD_BIN`, else the one beside the test programs.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("CKPTD_BIN") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("the test program has a path");
    let beside = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("ckptd"))
        .find(|path| path.is_file());
    beside.expect("no ckptd beside the test programs: run `cargo build -p ckptd`, or set CKPTD_BIN")
}

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// The command line.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a command to its end, without standard input unless one was set. Output goes through files, not pipes: a
/// restored job may hold them open for long.
///
/// # Panics
/// When it cannot be started or does not end in time; it is killed then.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    let mut stdout = tempfile::tempfile().expect("a temporary file");
    let mut stderr = tempfile::tempfile().expect("a temporary file");
    command.stdout(Stdio::from(stdout.try_clone().expect("dup")));
    command.stderr(Stdio::from(stderr.try_clone().expect("dup")));
    let text = show_command(command);
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    let ended = wait_at_most(crate::PATIENCE, || child.try_wait().expect("wait"));
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let said = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind().expect("rewind");
        file.read_to_end(&mut bytes).expect("read");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (said(&mut stdout), said(&mut stderr));
    let Some(status) = ended else {
        panic!("{text} does not end\n{stdout}\n{stderr}")
    };
    Output {
        command: text,
        status,
        stdout,
        stderr,
    }
}

/// A command as one would type it.
#[must_use]
pub fn show_command(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// 128 and the signal for a death by signal.
pub(crate) fn shell_status(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

impl Output {
    /// The exit status as a shell counts it: 128 and the signal for a death by signal.
    #[must_use]
    pub fn code(&self) -> i32 {
        shell_status(self.status)
    }

    /// Panics unless the exit status is `code`, or with any sign of a panic inside.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert!(self.code() == code, "expected exit status {code}\n{self}");
        assert!(!self.stderr.contains("panicked at"), "it panicked\n{self}");
        self
    }

    /// Panics unless standard error has all of `words`.
    #[track_caller]
    pub fn expect_message(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "the message lacks {word:?}\n{self}"
            );
        }
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON: {error}\n{self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "$ {}\n{}{}[{}]",
            self.command, self.stdout, self.stderr, self.status
        )
    }
}
