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
    let mut failed = Vec::new();
    for (component, arguments) in CHECKS {
        if !setup::has_cargo(component) {
            left_out.push(format!("cargo {component} is not installed"));
            continue;
        }
        say(&format!("cargo {component}"));
        if let Err(error) = run(cargo().arg(component).args(*arguments)) {
            failed.push(error.to_string());
        }
    }
    say("cargo build");
    run(cargo().args(["build", "--workspace", "--quiet"]))?;
    say("cargo test");
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    if args.quick {
        command.args(["--lib", "--bins"]);
    }
    command.args(&args.rest);
    let (passed, skipped) = run_tests(command)?;
    left_out.extend(skipped);
    if !passed {
        failed.push("some tests; their names are above".to_owned());
    }
    if !left_out.is_empty() {
        say("left out");
        println!("  {}", left_out.join("\n  "));
    }
    if !failed.is_empty() {
        bail!("failed:\n  {}", failed.join("\n  "));
    }
    say("all passed");
    Ok(())
}

/// What cargo checks besides the tests.
const CHECKS: &[(&str, &[&str])] = &[
    ("fmt", &["--all", "--check"]),
    (
        "clippy",
        &[
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ],
    ),
];

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
