//! Checkpoint and restart for Linux jobs: the commands, and the supervisor of one job.
#![forbid(unsafe_code)]

mod bpf;
mod cli;
mod commands;
mod doctor;
mod failure;
mod lazy;
mod output;
mod process;
mod progress;
mod registry;
mod report;
mod stage;
mod supervisor;
mod take;
mod timing;
mod upkeep;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let since = Instant::now();
    let cli = cli::Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("CKPTD_LOG")
                .unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    // A file that may not grow is an error to report, not a reason to die. `run` leaves this to its supervisor, for
    // its job is to start with the signals as they are.
    if !matches!(cli.command, cli::Command::Run(_) | cli::Command::Init(_)) {
        let _ = SigSet::from_iter([Signal::SIGXFSZ]).thread_block();
    }
    let json = cli.command.json();
    match commands::execute(cli.command, since) {
        Ok(code) => code,
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.exit as u8)
        }
    }
}
