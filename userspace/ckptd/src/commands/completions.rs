//! `ckptd completions`.

use crate::cli::{Cli, Completions};
use crate::failure::Failure;
use clap::CommandFactory;
use std::process::ExitCode;

/// Prints the script.
pub(crate) fn execute(args: &Completions) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ckptd", &mut script);
    crate::output::print(&String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}
