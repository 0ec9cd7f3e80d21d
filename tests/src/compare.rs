//! Two ways to read the same job must find the same.

use std::process::Command;

use images::proto::Snapshot;
use images::proto::open_file::Kind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Job, Subject, binary, marked, run, skip, state, wait_for};

/// Checkpoints a stopped subject with eBPF programs and without, and expects the same records.
///
/// # Panics
/// When they differ.
pub fn same_without_bpf(subject: &Subject) {
    if !crate::is_root() {
        return skip(subject.name, "only root may load eBPF programs");
    }
    if !loads() {
        return skip(
            subject.name,
            "this kernel takes no eBPF programs (`ckptd doctor`)",
        );
    }
    let started = if subject.orphans {
        Job::start(subject)
    } else {
        Job::start_alone(subject, &[])
    };
    let Some(job) = started else { return };
    let stop = |pid: &i32| {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
    };
    // Once nobody runs any more, nobody is born any more.
    wait_for("the job to stop", || {
        // Alone, the job's root is what counts as its supervisor elsewhere.
        let mut processes = if subject.orphans {
            job.processes()
        } else {
            marked(&job.name)
        };
        processes.retain(|pid| !matches!(state(*pid), Some('T' | 'Z' | 'X') | None));
        processes.iter().for_each(stop);
        processes.is_empty().then_some(())
    });
    // Timers may go off between the two looks.
    let found = (0..ATTEMPTS).map(|nth| {
        let _ = job.checkpoint(&["--bpf"]).expect(0);
        let _ = job.checkpoint(&["--no-bpf"]).expect(0);
        differences(&snapshot(&job, 2 * nth + 1), &snapshot(&job, 2 * nth + 2))
    });
    let differ = |found: &Vec<String>| !found.is_empty();
    let found: Vec<Vec<String>> = found.take_while(differ).collect();
    assert!(
        (found.len() as u64) < ATTEMPTS,
        "{}\n{job}",
        found.last().unwrap().join("\n")
    );
}

/// How often two looks may find something else.
const ATTEMPTS: u64 = 4;

/// The first lines in which two snapshots differ.
fn differences(with: &Snapshot, without: &Snapshot) -> Vec<String> {
    let (with, without) = (format!("{with:#?}"), format!("{without:#?}"));
    let lines = with.lines().zip(without.lines()).enumerate();
    let differ = |(nth, (with, without)): (usize, (&str, &str))| {
        (with != without).then(|| format!("line {nth}: {with} without: {without}"))
    };
    lines.filter_map(differ).take(20).collect()
}

/// Whether eBPF programs can be loaded here: otherwise both ways would be one.
fn loads() -> bool {
    let said = run(Command::new(binary()).args(["doctor", "--json"]));
    let facts: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let fact = facts
        .as_array()
        .unwrap()
        .iter()
        .find(|fact| fact["name"] == "eBPF")
        .unwrap();
    fact["state"] == "good"
}

/// The records of a checkpoint, without what differs between two looks at the same stopped job.
fn snapshot(job: &Job, sequence: u64) -> Snapshot {
    let store = images::Store::open(&job.store).unwrap();
    let checkpoint = store
        .job(&job.name)
        .unwrap()
        .checkpoint(Some(sequence))
        .unwrap();
    let mut snapshot = checkpoint.snapshot().clone();
    snapshot.host = None;
    for file in &mut snapshot.files {
        if let Some(Kind::Timerfd(timer)) = &mut file.kind {
            timer.remaining = u64::from(timer.remaining != 0);
            timer.deadline = u64::from(timer.deadline != 0);
            timer.ticks = u64::from(timer.ticks != 0);
        }
    }
    for shared in &mut snapshot.shared {
        // Reading them is an access.
        shared.accessed = 0;
    }
    for process in &mut snapshot.processes {
        for timer in &mut process.interval_timers {
            timer.remaining = u64::from(timer.remaining != 0);
        }
        for timer in &mut process.posix_timers {
            timer.remaining = u64::from(timer.remaining != 0);
        }
        for thread in &mut process.threads {
            // Which parts of it are in their initial state may change with every switch to the thread.
            thread.xstate.clear();
            // Without eBPF it may not be known which wait the kernel continues.
            thread.remaining = None;
        }
    }
    snapshot
}
