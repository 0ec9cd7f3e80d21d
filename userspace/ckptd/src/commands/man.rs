//! `ckptd man`.

use crate::cli::{Cli, Man};
use crate::failure::Failure;
use clap::CommandFactory;
use std::process::ExitCode;

/// Writes one page for ckptd and one for each command.
pub(crate) fn execute(args: &Man) -> Result<ExitCode, Failure> {
    let command = Cli::command().disable_help_subcommand(true);
    match &args.dir {
        Some(dir) => std::fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(command, dir))
            .map_err(|error| {
                Failure::because(
                    format!("cannot write manual pages to {}", dir.display()),
                    error,
                )
            })?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command)
                .render(&mut page)
                .map_err(|error| Failure::because("cannot write the manual page", error))?;
            crate::output::print(&String::from_utf8_lossy(&page));
        }
    }
    Ok(ExitCode::SUCCESS)
}
