//! `cargo xtask vmtest`: the tests of memory tracking and of eBPF under other kernels than this machine's, in virtual machines, and a job that
//! is saved under one kernel and restored under the next.

mod guest;
mod kernel;
mod machine;

use crate::setup;
use crate::shell::{cargo, run, target};
use anyhow::{Context, Result, bail};
use guest::Program;
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this kernel; may be given several times
    #[arg(long, value_parser = KERNELS)]
    kernel: Vec<String>,
    /// NUMA nodes of the machine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    numa: u8,
    /// Only tests whose names have this in them
    filter: Option<String>,
}

/// 6.1 has soft-dirty pages and no asynchronous write protection; 6.12 has both.
const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// The subjects that are taken along, and the modes in which they are tried.
const SUBJECTS: &[&str] = &["anonymous", "heap", "file_private", "mappings", "writing"];
const MODES: &[&str] = &["full", "chain"];

pub(crate) fn execute(args: &Args) -> Result<()> {
    setup::for_machines()?;
    let programs = build(args.filter.as_deref())?;
    let folder = target().join("vmtest");
    let initrd = guest::pack(&folder, &programs)?;
    let (mut failed, mut skipped) = (Vec::new(), Vec::new());
    let mut carried = String::new();
    for name in KERNELS {
        if !args.kernel.is_empty() && !args.kernel.iter().any(|wanted| wanted == name) {
            continue;
        }
        let image = match kernel::image(name, &folder) {
            Ok(image) => image,
            Err(error) => {
                println!("== Linux {name}: skipped");
                skipped.push(format!("SKIPPED Linux {name}: {error:#}"));
                continue;
            }
        };
        println!("== Linux {name}");
        let log = folder.join(format!("{name}.log"));
        let initrd = match carried.as_str() {
            "" => initrd.clone(),
            archive => guest::carry(&folder, &initrd, archive)?,
        };
        let (results, next) = machine::boot(&image, &initrd, args.numa, &log)?;
        carried = next;
        let bad = results.iter().filter(|(_, good)| !good);
        failed.extend(
            bad.map(|(test, _)| format!("{test} under Linux {name}; see {}", log.display())),
        );
        println!("Linux {name}: {} results", results.len());
    }
    for line in &skipped {
        println!("{line}");
    }
    if !failed.is_empty() {
        bail!("failed:\n  {}", failed.join("\n  "));
    }
    if skipped.len() == KERNELS.len().min(args.kernel.len().max(1)) {
        bail!("no kernel to test under");
    }
    println!("== all passed");
    Ok(())
}

/// Builds what runs in the machine.
fn build(filter: Option<&str>) -> Result<Vec<Program>> {
    run(cargo().args(["build", "--quiet", "-p", "ckptd"]))?;
    let mut programs = Vec::new();
    for (package, which) in [
        ("memory", "--lib"),
        ("engine", "--lib"),
        ("tracker", "--test=picture"),
    ] {
        let path = test_binary(&["-p", package, which])?;
        programs.push(Program::test(
            package,
            path,
            filter.into_iter().map(Into::into),
        ));
    }
    let subjects = test_binary(&["-p", "tests", "--test", "subjects"])?;
    let test = |subject: &&str, mode: &str| format!("{subject}::{mode}");
    // There is no compiler in the machine; a subject is built by whoever runs it first.
    let alone = SUBJECTS
        .iter()
        .chain(&["vdso"])
        .map(|subject| test(subject, "uninterrupted"));
    run(Command::new(&subjects)
        .arg("--exact")
        .args(alone)
        .stdout(Stdio::null()))?;
    let chosen = SUBJECTS
        .iter()
        .flat_map(|subject| MODES.iter().map(move |mode| test(subject, mode)));
    let chosen = chosen.filter(|test| filter.is_none_or(|filter| test.contains(filter)));
    let chosen: Vec<_> = chosen.collect();
    if !chosen.is_empty() {
        let mut program = Program::test(
            "subjects",
            subjects,
            std::iter::once("--exact".to_owned()).chain(chosen),
        );
        program.needs.push(target().join("debug/ckptd"));
        program.needs.push("/bin/bash".into());
        program.needs.extend(
            SUBJECTS
                .iter()
                .map(|name| target().join("subjects").join(name)),
        );
        programs.push(program);
    }
    let random = test_binary(&["-p", "tests", "--test", "memory"])?;
    if filter.is_none_or(|filter| "incremental".contains(filter)) {
        // The first case on this machine builds its subject.
        run(Command::new(&random)
            .args(["--exact", "whole"])
            .env("CKPTD_TEST_MEMORY_CASES", "1")
            .stdout(Stdio::null()))?;
        let which = ["--exact", "incremental"].map(str::to_owned);
        let mut program = Program::test("random", random, which.into_iter());
        program.needs.push(target().join("debug/ckptd"));
        program.needs.push("/bin/bash".into());
        program
            .needs
            .push(target().join("subjects").join("random_memory"));
        programs.push(program);
    }
    let vdso = target().join("subjects/vdso");
    if filter.is_none_or(|filter| "vdso".contains(filter)) {
        programs.push(Program {
            name: "vdso".to_owned(),
            by: "carry",
            path: target().join("debug/ckptd"),
            arguments: vec![vdso.display().to_string()],
            needs: vec![vdso],
        });
    }
    programs.push(Program {
        name: "doctor".to_owned(),
        by: "",
        path: target().join("debug/ckptd"),
        arguments: vec!["doctor".to_owned()],
        needs: Vec::new(),
    });
    Ok(programs)
}

/// Where cargo has put a test program.
fn test_binary(which: &[&str]) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["test", "--no-run", "--quiet", "--message-format=json"])
        .args(which);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the tests {which:?} do not compile");
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut paths = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    paths
        .next_back()
        .with_context(|| format!("cargo does not say where the tests {which:?} are"))
}
