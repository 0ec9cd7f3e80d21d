//! `cargo xtask test`: every check and test, as CI runs them.

use crate::setup;
use crate::shell::{cargo, run, shown};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only formatting, lints and the unit tests of each crate
    #[arg(long)]
    quick: bool,
    /// Passed on to `cargo test`: `cargo xtask test -- --test cli`
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn execute(args: &Args) -> Result<()> {
    setup::everything()?;
    let mut left_out = Vec::new();
    if setup::has_cargo("fmt") {
        say("formatting");
        run(cargo().args(["fmt", "--all", "--check"]))?;
    } else {
        left_out.push("formatting: cargo fmt is not installed".to_owned());
    }
    if setup::has_cargo("clippy") {
        say("lints");
        run(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]))?;
    } else {
        left_out.push("lints: cargo clippy is not installed".to_owned());
    }
    say("building");
    run(cargo().args(["build", "--workspace", "--quiet"]))?;
    say("tests");
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    if args.quick {
        command.args(["--lib", "--bins"]);
    }
    command.args(&args.rest);
    let (passed, skipped) = run_tests(command)?;
    left_out.extend(skipped);
    if !left_out.is_empty() {
        say("left out");
        for line in &left_out {
            println!("  {line}");
        }
    }
    if !passed {
        bail!("some tests failed; their names are above");
    }
    Ok(())
}

fn say(what: &str) {
    println!("== {what}");
    let _ = std::io::stdout().flush();
}

/// Runs the tests, showing what they say; gives whether all passed, and what each skipped test said.
fn run_tests(mut command: std::process::Command) -> Result<(bool, Vec<String>)> {
    let text = shown(&command);
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {text}"))?;
    let mut skipped = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            eprintln!("{line}");
            if let Some(what) = line.strip_prefix("SKIPPED ") {
                skipped.push(what.to_owned());
            }
        }
    }
    Ok((child.wait()?.success(), skipped))
}
