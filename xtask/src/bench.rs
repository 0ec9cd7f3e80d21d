//! `cargo xtask bench`: whole checkpoints and restores, measured from outside and from within the job, beside a peer.

mod incremental;
mod job;
mod lazy;
mod measure;
mod report;
mod tool;

use crate::shell::{cargo, is_root, root, run, target};
use anyhow::{Context, Result, bail, ensure};
use job::{Job, WORKLOADS, Workload};
use report::{Entry, Sample};
use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tool::Tool;

pub(crate) use measure::{Args as MeasureArgs, execute as measure};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Less memory and three runs
    #[arg(long)]
    quick: bool,
    /// Another tool to run in turns with ckptd: criu=PATH
    #[arg(long, value_name = "NAME=PATH", value_parser = tool::parse_peer)]
    peer: Option<Tool>,
    /// Only this workload; may be given several times
    #[arg(long, value_name = "NAME", value_parser = job::NAMES)]
    only: Vec<String>,
    /// Runs of each workload with each tool [default: 7, with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: Option<u32>,
    /// Where images go
    #[arg(long, value_name = "D", default_value = "/dev/shm")]
    dir: PathBuf,
    /// Measure incremental checkpoints instead: stops, bytes and times of a job that is saved again and again
    #[arg(long, conflicts_with_all = ["peer", "only", "runs"])]
    incremental: bool,
    /// Measure lazy restores instead, beside eager ones: when the job runs, is at its normal speed, and has all of its memory
    #[arg(long, conflicts_with_all = ["peer", "only", "runs", "incremental"])]
    lazy: bool,
    /// Measure the peer alone
    #[arg(long, requires = "peer")]
    without_ckptd: bool,
}

pub(crate) fn execute(args: &Args) -> Result<()> {
    ensure!(
        is_root(),
        "checkpoints need rights that only root has: run this as root"
    );
    let programs = build_workloads()?;
    let scratch = args.dir.join(format!("ckptd-bench-{}", std::process::id()));
    if args.incremental {
        return incremental::execute(&programs, &scratch, args.quick);
    }
    if args.lazy {
        return lazy::execute(&programs, &scratch, args.quick);
    }
    let mut tools = Vec::new();
    if !args.without_ckptd {
        run(cargo().args(["build", "--quiet", "--release", "--package", "ckptd"]))?;
        tools.push(Tool::Ckptd(target().join("release/ckptd")));
    }
    tools.extend(args.peer.clone());
    let runs = args.runs.unwrap_or(if args.quick { 3 } else { 7 });
    let chosen = |workload: &&Workload| {
        args.only.is_empty() || args.only.iter().any(|name| name == workload.name)
    };
    let mut entries = Vec::new();
    for workload in WORKLOADS.iter().filter(chosen) {
        let mut results = vec![Entry::default(); tools.len()];
        for turn in 1..=runs {
            for (tool, entry) in tools.iter().zip(&mut results) {
                if entry.failure.is_some() {
                    continue;
                }
                say(&format!("{}: {} {turn}/{runs}", workload.name, tool.name()));
                match cycle(tool, workload, &programs, &scratch, args.quick) {
                    Ok(sample) => entry.samples.push(sample),
                    Err(error) => entry.failure = Some(format!("{error:#}")),
                }
                let _ = fs::remove_dir_all(&scratch);
            }
        }
        say("");
        entries.push((*workload, results));
    }
    let names: Vec<&str> = tools.iter().map(Tool::name).collect();
    report::print(&names, &entries);
    let path = target().join("bench/report.json");
    fs::write(&path, report::json(&names, &entries)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("\nall samples: {}", path.display());
    let failed = entries
        .iter()
        .any(|(_, results)| results.iter().any(|entry| entry.failure.is_some()));
    if failed {
        bail!("some measurements failed, see above");
    }
    Ok(())
}

/// Shows on a terminal what is under way, in place of what was.
fn say(text: &str) {
    let mut out = std::io::stdout();
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[K{text}").and_then(|()| out.flush());
    }
}

/// Compiles benches/workloads/*.c; gives the directory with the programs.
fn build_workloads() -> Result<PathBuf> {
    let out = target().join("bench");
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut programs: Vec<&str> = WORKLOADS.iter().map(|workload| workload.program).collect();
    programs.dedup();
    programs.extend(["writer", "worker"]);
    for program in programs {
        let source = root()
            .join("benches/workloads")
            .join(program)
            .with_extension("c");
        run(Command::new("gcc")
            .args(["-O2", "-Wall", "-Wextra", "-pthread", "-o"])
            .arg(out.join(program))
            .arg(source))?;
    }
    Ok(out)
}

/// A job is started, saved, killed, brought back, and asked whether it is what it was.
fn cycle(
    tool: &Tool,
    workload: &Workload,
    programs: &Path,
    scratch: &Path,
    quick: bool,
) -> Result<Sample> {
    let images = scratch.join("images");
    let log = scratch.join("log");
    fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;
    let mut job = Job::start(workload, programs, &scratch.join("job"), quick)?;
    let memory = job.memory()?;

    warm(scratch, memory)?;
    let saved = measure::run(&tool.checkpoint(job.pid(), &images), &log).context("checkpoint")?;
    // It notes that it stood still once it runs again.
    std::thread::sleep(Duration::from_millis(50));
    let stopped = job.told.longest_gap(saved.started);
    let bytes = size_of(&images)?;
    job.kill()?;

    warm(scratch, memory)?;
    let restored = measure::run(&tool.restore(&images), &log).context("restore")?;
    let resumed = job.told.wait_for_resume(restored.started)?;
    job.verify()?;
    Ok(Sample {
        checkpoint: saved.seconds(),
        stopped,
        restore: (resumed - restored.started) as f64 / 1e9,
        bytes,
        peak: saved.peak.max(restored.peak),
    })
}

/// A hypervisor may give memory only when it is first touched, at a price that is not the tools': so much of it is
/// touched and freed again right before it is needed.
fn warm(dir: &Path, bytes: u64) -> Result<()> {
    let path = dir.join("warm");
    let mut file =
        fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let bytes = bytes + bytes / 8 + (64 << 20);
    std::io::copy(&mut std::io::repeat(1).take(bytes), &mut file)?;
    drop(file);
    Ok(fs::remove_file(&path)?)
}

/// Bytes of all files below a directory.
fn size_of(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let data = entry.metadata()?;
        bytes += if data.is_dir() {
            size_of(&entry.path())?
        } else {
            data.len()
        };
    }
    Ok(bytes)
}
