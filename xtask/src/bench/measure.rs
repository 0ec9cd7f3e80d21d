//! One command, measured: when it began and ended, and the most memory it had.
//!
//! The kernel tells the memory of ended children, but only that of the largest so far. So each command is the only
//! child of a process of its own: `cargo xtask measure`.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// How a command went that succeeded.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// `CLOCK_REALTIME`, in nanoseconds.
    pub(crate) started: u64,
    /// `CLOCK_REALTIME`, in nanoseconds.
    pub(crate) ended: u64,
    /// The most memory it had resident, in bytes.
    pub(crate) peak: u64,
}

impl Measured {
    pub(crate) fn seconds(&self) -> f64 {
        (self.ended - self.started) as f64 / 1e9
    }
}

/// Runs and measures a command; what it says goes to the file `log`, and into the error when it fails.
pub(crate) fn run(command: &[String], log: &Path) -> Result<Measured> {
    let output = Command::new(std::env::current_exe()?)
        .args(["measure", "--"])
        .args(command)
        .stdin(Stdio::null())
        .stderr(fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?)
        .output()?;
    if !output.status.success() {
        bail!(
            "{}: {}",
            command.join(" "),
            fs::read_to_string(log).unwrap_or_default().trim()
        );
    }
    serde_json::from_slice(&output.stdout).context("the measuring process says something else")
}

/// `cargo xtask measure`: the process in between.
pub(crate) fn execute(args: &Args) -> Result<()> {
    let (program, arguments) = args.command.split_first().context("no command")?;
    let started = now();
    let status = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .status();
    let ended = now();
    let status = status.with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{status}");
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() as u64 * 1024;
    println!(
        "{}",
        serde_json::to_string(&Measured {
            started,
            ended,
            peak
        })?
    );
    Ok(())
}

/// `CLOCK_REALTIME`, in nanoseconds.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}
