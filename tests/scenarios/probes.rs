//! Breakpoints of somebody else's in a job's code (uprobes) never come into an image.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use tests::{Job, Subject, helper, skip, wait_for};

/// A probe, taken out when this is dropped.
struct Probe(Child);

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts the breakpoint of `probed.c` there; `Err` says why that is not possible.
fn probe(job: &Job) -> Result<Probe, String> {
    let told = |name: &str| fs::read_to_string(job.work.join(name)).unwrap();
    let mut child = Command::new(helper("uprobe"))
        .arg(job.processes()[0].to_string())
        .args([told("executable"), told("offset")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let _ = BufReader::new(child.stdout.take().unwrap()).read_line(&mut line);
    let probe = Probe(child);
    if line == "PROBED\n" {
        Ok(probe)
    } else {
        Err(line.trim().to_owned())
    }
}

fn stays_out(name: &str, checkpoints: &[&[&str]], restore: &[&str]) {
    let Some(mut job) = Job::start(&Subject::new("probed")) else {
        return;
    };
    let probe = match probe(&job) {
        Ok(probe) => probe,
        Err(why) => return skip(name, &why),
    };
    fs::write(job.work.join("probed"), "").unwrap();
    wait_for("the probe to be hit", || {
        job.work.join("hit").exists().then_some(())
    });
    for arguments in checkpoints {
        let _ = job.checkpoint(arguments).expect(0);
    }
    job.kill_all();
    drop(probe);
    job.go();
    job.restore(restore);
    job.finish();
}

#[test]
fn of_a_whole_checkpoint() {
    stays_out("of_a_whole_checkpoint", &[&[]], &[]);
}

#[test]
fn of_a_chain() {
    let incremental: &[&str] = &["--incremental"];
    stays_out("of_a_chain", &[incremental, incremental], &[]);
}

#[test]
fn of_a_lazy_restore_without_bpf() {
    stays_out(
        "of_a_lazy_restore_without_bpf",
        &[&["--no-bpf"]],
        &["--lazy"],
    );
}
