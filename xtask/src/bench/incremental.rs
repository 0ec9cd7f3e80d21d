//! `cargo xtask bench --incremental`: a job that is saved again and again while it writes; how long it stands still is its own word.

use super::job::Told;
use super::measure::now;
use crate::shell::{cargo, run, target};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Checkpoints after the first.
const ROUNDS: usize = 6;

struct Case {
    name: &'static str,
    mebibytes: u64,
    /// Pages a second; -1: all of them, as fast as it can.
    rate: i64,
}

/// 1 % of the pages a second.
const fn percent(name: &'static str, mebibytes: u64) -> Case {
    Case {
        name,
        mebibytes,
        rate: (mebibytes * 256 / 100) as i64,
    }
}

const CASES: [Case; 6] = [
    percent("1 GiB, 1 %/s", 1024),
    percent("2 GiB, 1 %/s", 2048),
    percent("4 GiB, 1 %/s", 4096),
    percent("8 GiB, 1 %/s", 8192),
    Case {
        name: "4 GiB, idle",
        mebibytes: 4096,
        rate: 0,
    },
    Case {
        name: "1 GiB, all",
        mebibytes: 1024,
        rate: -1,
    },
];

/// What `ckptd checkpoint --json` says.
#[derive(Deserialize)]
struct Taken {
    bytes: u64,
    total_seconds: f64,
}

pub(super) fn execute(programs: &Path, scratch: &Path, quick: bool) -> Result<()> {
    run(cargo().args(["build", "--quiet", "--release", "--package", "ckptd"]))?;
    let ckptd = target().join("release/ckptd");
    println!("stops by the job's own clock; of the later checkpoints median (largest)");
    println!(
        "{:<16}{:>12}{:>16}{:>16}{:>20}{:>14}{:>12}",
        "job", "first stop", "later stops", "in all", "written/changed", "ckptd memory", "restored"
    );
    for case in CASES {
        let mebibytes = if quick {
            case.mebibytes / 8
        } else {
            case.mebibytes
        };
        let rate = if quick && case.rate > 0 {
            case.rate / 8
        } else {
            case.rate
        };
        let line = measure(&ckptd, programs, scratch, mebibytes, rate);
        let _ = fs::remove_dir_all(scratch);
        let line = line.with_context(|| case.name.to_owned())?;
        println!("{:<16}{line}", case.name);
    }
    Ok(())
}

fn measure(
    ckptd: &Path,
    programs: &Path,
    scratch: &Path,
    mebibytes: u64,
    rate: i64,
) -> Result<String> {
    let dir = scratch.join("job");
    let arguments = [mebibytes.to_string(), rate.to_string()];
    let command = |arguments: &[&str]| {
        let mut command = Command::new(ckptd);
        command
            .args(arguments)
            .env("CKPTD_DIR", scratch.join("images"));
        command
    };
    fs::create_dir_all(&dir)?;
    let job = Told::new(&dir);
    let mut supervisor = Supervisor(
        command(&["run", "--incremental", "--name", "writer", "--"])
            .arg(programs.join("writer"))
            .arg(&dir)
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
        &job,
    );
    job.ready()?;
    let take = |kill: bool| -> Result<(f64, Taken, f64)> {
        let since = now();
        let mut command = command(&["checkpoint", "--incremental", "--json"]);
        let output = command
            .args(kill.then_some("--kill"))
            .arg("writer")
            .output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        let taken = serde_json::from_slice(&output.stdout)?;
        std::thread::sleep(Duration::from_millis(50));
        Ok((job.longest_gap(since) * 1e3, taken, job.written()))
    };
    let (first, _, mut written) = take(false)?;
    let (mut stops, mut totals, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        std::thread::sleep(Duration::from_secs(1));
        let (stop, taken, at) = take(false)?;
        stops.push(stop);
        totals.push(taken.total_seconds * 1e3);
        // It stood still just before the end: what was written since counts for the next one.
        shares.push((
            taken.bytes as f64,
            (at - written).min(mebibytes as f64 * 256.0) * 4096.0,
        ));
        written = at;
    }
    let peak = supervisor.peak()?;
    take(true)?;
    let _ = supervisor.0.wait();
    run(command(&["restore", "--detach", "writer"]).stdout(Stdio::null()))?;
    job.verify()?;
    let (bytes, changed) = shares
        .iter()
        .fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    let share = if changed > 0.0 {
        format!(
            "{:.3} of {:.0} MiB",
            bytes / changed,
            changed / ROUNDS as f64 / 1048576.0
        )
    } else {
        format!("{:.2} MiB", bytes / ROUNDS as f64 / 1048576.0)
    };
    let spread = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        format!(
            "{:.1} ({:.1}) ms",
            values[values.len() / 2],
            values[values.len() - 1]
        )
    };
    Ok(format!(
        "{:>9.1} ms{:>16}{:>16}{share:>20}{:>10.0} MiB{:>12}",
        first,
        spread(&mut stops),
        spread(&mut totals),
        peak as f64 / 1048576.0,
        "right"
    ))
}

struct Supervisor<'a>(Child, &'a Told);

impl Supervisor<'_> {
    /// The most memory it had, in bytes.
    fn peak(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).context("no VmHWM")
    }
}

impl Drop for Supervisor<'_> {
    /// Whatever went wrong: the job ends, and its supervisor with it.
    fn drop(&mut self) {
        self.1.end();
        let _ = self.0.wait();
    }
}
