//! `cargo xtask apps`: real programs under ckptd, and the table of what came of it.

use crate::setup;
use crate::shell::{cargo, root, run, target};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many times each program runs in each mode
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Only this mode
    #[arg(long, value_parser = ["full", "incremental", "lazy"])]
    mode: Option<String>,
    /// Only these programs, by the names of their folders; the lines of others stay as they are
    programs: Vec<String>,
}

/// What the scenario `apps` says of a program in a mode.
#[derive(Debug, serde::Deserialize)]
struct Outcome {
    program: String,
    mode: String,
    runs: u32,
    moments: u32,
    failure: Option<String>,
}

const TABLE: &str = "docs/COMPATIBILITY.md";

pub(crate) fn execute(args: &Args) -> Result<()> {
    setup::everything()?;
    run(cargo().args(["build", "--quiet", "-p", "ckptd"]))?;
    let results = target().join("apps-results");
    let _ = fs::remove_file(&results);
    let mut command = cargo();
    command
        .args([
            "test",
            "-p",
            "tests",
            "--test",
            "apps",
            "--no-fail-fast",
            "--",
        ])
        .arg("--test-threads=1");
    let mode = args.mode.as_deref();
    let filters = args.programs.iter().map(|program| {
        let module = program.replace('-', "_");
        format!("{module}::{}", mode.unwrap_or_default())
    });
    if args.programs.is_empty() {
        command.args(mode.map(|mode| format!("::{mode}")));
    }
    command
        .args(filters)
        .env("CKPTD_TEST_APPS", "all")
        .env("CKPTD_TEST_APP_RUNS", args.runs.to_string())
        .env("CKPTD_TEST_APP_RESULTS", &results);
    let passed = run(&mut command);
    let text = fs::read_to_string(&results)
        .context("no program ran; CKPTD_APPS names the folder of programs")?;
    let outcomes = text.lines().map(serde_json::from_str);
    let outcomes: Vec<Outcome> = outcomes.collect::<serde_json::Result<_>>()?;
    let path = root().join(TABLE);
    let before = fs::read_to_string(&path).unwrap_or_default();
    fs::create_dir_all(path.parent().unwrap_or(root()))?;
    fs::write(&path, table(&before, &outcomes))?;
    println!("== {TABLE}");
    if passed.is_err() {
        bail!("some programs did not go well; see above");
    }
    Ok(())
}

const HEAD: &str = "\
# Real programs under ckptd

`cargo xtask apps` makes this table: each program is interrupted at up to three moments of each run (checkpointed, killed, restored), and must end
with the result of a run that was left alone. Between moments of the mode *incremental* lies one more checkpoint, at which the job runs on.

| program | mode | runs | moments | result |
|---|---|---|---|---|
";

/// The table with these outcomes in the place of the lines for the same programs and modes.
fn table(before: &str, outcomes: &[Outcome]) -> String {
    let mut lines: BTreeMap<(String, String), String> = BTreeMap::new();
    for line in before.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let ["", program, mode, runs, ..] = cells[..]
            && runs.parse::<u32>().is_ok()
        {
            lines.insert((program.to_owned(), mode.to_owned()), line.to_owned());
        }
    }
    for outcome in outcomes {
        let Outcome {
            program,
            mode,
            runs,
            moments,
            ..
        } = outcome;
        let result = match &outcome.failure {
            None => "the same".to_owned(),
            Some(why) => format!("**failed in the run after these**: {}", short(why)),
        };
        let line = format!("| {program} | {mode} | {runs} | {moments} | {result} |");
        lines.insert((program.clone(), mode.clone()), line);
    }
    let mut text = HEAD.to_owned();
    for line in lines.values() {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// One line of a failure, fit for a cell: without commands and places of this run.
fn short(why: &str) -> String {
    let lines = why.lines().filter(|line| !line.starts_with("$ "));
    let words = lines.flat_map(str::split_whitespace);
    let words: Vec<&str> = words.filter(|word| !word.contains("/tmp/")).collect();
    let line: String = words.join(" ").replace('|', "/");
    line.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_replaced_and_kept() {
        let outcome = |program: &str, failure: Option<&str>| Outcome {
            program: program.to_owned(),
            mode: "full".to_owned(),
            runs: 2,
            moments: 6,
            failure: failure.map(str::to_owned),
        };
        let first = table(
            "",
            &[
                outcome("b", Some("x\n$ run /tmp/it\n| y")),
                outcome("a", None),
            ],
        );
        assert!(first.ends_with("| a | full | 2 | 6 | the same |\n| b | full | 2 | 6 | **failed in the run after these**: x / y |\n"));
        let second = table(&first, &[outcome("b", None)]);
        assert!(
            second.ends_with("| a | full | 2 | 6 | the same |\n| b | full | 2 | 6 | the same |\n")
        );
    }
}
