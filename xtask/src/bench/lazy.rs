//! `cargo xtask bench --lazy`: a job that needs a twentieth of its memory, brought back with all of it and with none of it, in turns. All
//! times are from the command on, and but for the last the job's own word.

use super::job::{Job, Told, Workload};
use super::measure;
use super::tool::Tool;
use crate::shell::{cargo, run, target};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::time::Duration;

const WORKER: [Workload; 4] = [
    Workload::same("1 GiB", "worker", &["1024", "5"], 1.0),
    Workload::same("2 GiB", "worker", &["2048", "5"], 1.0),
    Workload::same("4 GiB", "worker", &["4096", "5"], 1.0),
    Workload::same("8 GiB", "worker", &["8192", "5"], 1.0),
];
/// With --quick.
const QUICK: [Workload; 2] = [
    Workload::same("256 MiB", "worker", &["256", "5"], 1.0),
    Workload::same("1 GiB", "worker", &["1024", "5"], 1.0),
];

/// Seconds.
struct Times {
    /// Until it ran.
    running: f64,
    /// Until its rounds took as long as ever.
    normal: f64,
    /// Until all of its memory was in.
    whole: f64,
    /// Until it had read all of its memory, when it did so at once.
    read: f64,
}

pub(super) fn execute(programs: &Path, scratch: &Path, quick: bool) -> Result<()> {
    run(cargo().args(["build", "--quiet", "--release", "--package", "ckptd"]))?;
    let tool = Tool::Ckptd(target().join("release/ckptd"));
    println!(
        "ms from the command to: the job runs, at its normal speed, its memory is in; all of it read by a job that does so at once"
    );
    println!(
        "{:<10}{:<16}{:>10}{:>10}{:>10}{:>12}",
        "job", "restore", "runs", "normal", "all in", "all read"
    );
    let workloads = if quick { &QUICK[..] } else { &WORKER[..] };
    for workload in workloads {
        let measured = measure_all(&tool, workload, programs, scratch);
        let _ = fs::remove_dir_all(scratch);
        let measured = measured.with_context(|| workload.name.to_owned())?;
        for (name, times) in measured {
            println!(
                "{:<10}{name:<16}{:>10.1}{:>10.0}{:>10.0}{:>12.0}",
                workload.name,
                times.running * 1e3,
                times.normal * 1e3,
                times.whole * 1e3,
                times.read * 1e3
            );
        }
    }
    Ok(())
}

fn measure_all(
    tool: &Tool,
    workload: &Workload,
    programs: &Path,
    scratch: &Path,
) -> Result<Vec<(&'static str, Times)>> {
    let images = scratch.join("images");
    let dir = scratch.join("job");
    fs::create_dir_all(&images)?;
    let mut job = Job::start(workload, programs, &dir, false)?;
    // It learns how fast it can be.
    std::thread::sleep(Duration::from_millis(500));
    measure::run(&tool.checkpoint(job.pid(), &images), &scratch.join("log"))?;
    job.kill()?;
    let mut found = Vec::new();
    // Where ckptd, as root, notes what runs.
    let entry = Path::new("/run/ckptd").join(format!("bench-{}", job.pid()));
    for (name, lazy) in [("eager", false), ("lazy", true), ("lazy, again", true)] {
        let measured = measure_one(tool, lazy, scratch, &entry, &job.told);
        if measured.is_err() {
            job.told.end();
        }
        found.push((name, measured?));
    }
    Ok(found)
}

fn measure_one(
    tool: &Tool,
    lazy: bool,
    scratch: &Path,
    entry: &Path,
    told: &Told,
) -> Result<Times> {
    let log = scratch.join("log");
    let mut command = tool.restore(&scratch.join("images"));
    command.extend(lazy.then(|| "--lazy".to_owned()));
    let end = || -> Result<u64> {
        told.verify()?;
        let at = measure::now();
        told.wait_until("gone", || (!entry.exists()).then_some(()))?;
        for file in ["check", "verdict"] {
            fs::remove_file(scratch.join("job").join(file))?;
        }
        Ok(at)
    };
    let restored = measure::run(&command, &log)?;
    let since = |at: u64| at.saturating_sub(restored.started) as f64 / 1e9;
    let running = since(told.wait_for_resume(restored.started)?);
    told.wait_until("whole", || (!entry.join("lazy").exists()).then_some(()))?;
    let whole = if lazy { since(measure::now()) } else { running };
    // A round that began before that is over.
    std::thread::sleep(Duration::from_millis(300));
    let until = restored.started + (whole * 1e9) as u64;
    let normal = told
        .last_slow(restored.started, until)
        .map_or(running, since);
    end()?;

    // Once more, and it reads everything at once.
    told.end();
    let restored = measure::run(&command, &log)?;
    let read = end()?.saturating_sub(restored.started) as f64 / 1e9;
    Ok(Times {
        running,
        normal,
        whole,
        read,
    })
}
