//! What developers and first-time users run: `cargo xtask VERB`.
#![forbid(unsafe_code)]

mod apps;
mod bench;
mod demo;
mod setup;
mod shell;
mod test;
mod vmtest;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Chores of the ckptd project
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what is missing, build, and show a job that is saved, killed and brought back
    Demo(demo::Args),
    /// Install what is missing, build, and run all checks and tests
    Test(test::Args),
    /// Measure everything, beside other tools that are there
    Bench(bench::Args),
    /// Install what is missing, build, and run the tests of memory tracking under other kernels, in virtual machines
    Vmtest(vmtest::Args),
    /// Run real programs under ckptd, interrupted in each mode, and make docs/COMPATIBILITY.md of it
    Apps(apps::Args),
    /// Install what is missing
    Setup,
    /// Run one command and tell its time and memory
    #[command(hide = true)]
    Measure(bench::MeasureArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Demo(args) => demo::execute(&args),
        Verb::Test(args) => test::execute(&args),
        Verb::Bench(args) => bench::execute(&args),
        Verb::Apps(args) => apps::execute(&args),
        Verb::Vmtest(args) => vmtest::execute(&args),
        Verb::Measure(args) => bench::measure(&args),
        Verb::Setup => setup::everything(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
