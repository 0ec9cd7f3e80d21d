//! Checkpoints that build on each other: taken by the clock, pruned, and gone on with after a restore.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::fs;
use std::path::Path;

use tests::{Job, Subject, run, skip, wait_for};

/// Starts the subject under `ckptd run` with arguments of each; none when this machine cannot do it.
fn start(arguments: &[&str], led: &[&str]) -> Option<Job> {
    let subject = Subject::new("chain");
    let program = match subject.build() {
        Ok(program) => program,
        Err(why) => {
            skip(subject.name, &why);
            return None;
        }
    };
    let mut job = Job::prepare(subject.name);
    let mut command = job.ckptd("run");
    command.args(arguments).args(["--name", &job.name, "--"]);
    command.arg(program).arg(&job.work);
    command.args(led);
    job.spawn(command);
    wait_for("READY", || job.work.join("ready").exists().then_some(()));
    Some(job)
}

/// Has the subject write its memory for the `number`th time.
fn lead(job: &Job, number: usize) {
    fs::write(job.work.join("rounds"), vec![b'.'; number]).unwrap();
    let told = job.work.join(format!("round.{number}"));
    wait_for("a round to be over", || told.exists().then_some(()));
}

/// Takes an incremental checkpoint; gives the bytes it took.
#[track_caller]
fn take(job: &Job) -> u64 {
    let said = job.checkpoint(&["--incremental", "--json"]).expect(0);
    said.json()["bytes"].as_u64().unwrap()
}

/// The numbers of the checkpoints there are.
fn sequences(job: &Job) -> Vec<u64> {
    let number = |path: &Path| path.file_stem()?.to_str()?.parse().ok();
    job.manifests()
        .iter()
        .filter_map(|path| number(path))
        .collect()
}

/// Restores every checkpoint in turn; all of its memory is of one moment.
#[track_caller]
fn expect_restorable(job: &mut Job) {
    job.kill_all();
    let _ = run(job.ckptd("verify").arg(&job.name)).expect(0);
    job.go();
    for sequence in sequences(job) {
        // What ckptd itself has said meanwhile is in the job's output too, and an older checkpoint would cut it off.
        job.restore(&["--files", "keep", "--at", &sequence.to_string()]);
        job.finish();
    }
}

#[test]
fn taken_by_the_clock_and_pruned() {
    let Some(mut job) = start(&["--incremental", "--every", "200ms", "--keep", "3"], &[]) else {
        return;
    };
    wait_for("ten checkpoints, the old ones gone", || {
        let found = sequences(&job);
        let last = found.last().copied().unwrap_or(0);
        // One is there that will be deleted a moment later.
        (last >= 10 && found.len() <= 4 && found[0] > 5).then_some(())
    });
    expect_restorable(&mut job);
}

#[test]
fn pruned_by_age() {
    let Some(mut job) = start(&["--incremental"], &["led"]) else {
        return;
    };
    for round in 1..=6 {
        lead(&job, round);
        let _ = take(&job);
    }
    // The newest three, and the newest of each hour: between them it may have struck.
    let keep = ["--keep", "3", "--keep-hourly", "24", "--keep-daily", "7"];
    let _ = run(job.ckptd("prune").args(keep).arg(&job.name)).expect(0);
    let left = sequences(&job);
    assert!(
        left.ends_with(&[4, 5, 6]) && left.len() <= 4,
        "{left:?} are left"
    );
    lead(&job, 7);
    let _ = take(&job);
    expect_restorable(&mut job);
}

#[test]
fn memory_that_a_child_has_written_that_has_ended() {
    let Some(mut job) = start(&["--incremental"], &["led"]) else {
        return;
    };
    for round in 1..=4 {
        lead(&job, round);
        let _ = take(&job);
    }
    expect_restorable(&mut job);
}

#[test]
fn small_after_a_restore() {
    let Some(mut job) = start(&["--incremental"], &["alone"]) else {
        return;
    };
    let whole = take(&job);
    job.kill_all();
    job.restore(&["--incremental"]);
    job.await_running();
    // One page in sixteen.
    lead(&job, 1);
    let part = take(&job);
    let tracked = run(job.ckptd("doctor").arg("--json"))
        .stdout
        .contains("write tracking");
    assert!(
        part < whole / 4 || !tracked,
        "{part} bytes after a restore, {whole} bytes before"
    );
    expect_restorable(&mut job);
}
