//! Files that are not as they were at the checkpoint, and what `--files` does about them.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::fs;
use std::path::Path;

use tests::{Job, Subject, sabotaged, uninterrupted, wait_for};

const SUBJECT: Subject = Subject::new("file_changed");

/// A job that appended to its log after its checkpoint, and was killed then.
fn lost_job() -> Job {
    let mut job = Job::start(&SUBJECT).expect("this needs nothing special");
    let _ = job.checkpoint(&[]).expect(0);
    fs::write(job.work.join("more"), "").unwrap();
    wait_for("the job to append", || {
        job.work.join("appended").exists().then_some(())
    });
    job.kill_all();
    assert_eq!(
        fs::read_to_string(job.work.join("log")).unwrap(),
        "before\nlost\n"
    );
    job.go();
    job
}

/// The files beside the log that hold what was cut off.
fn kept_beside(work: &Path) -> Vec<String> {
    let all = fs::read_dir(work).unwrap().flatten();
    all.filter(|entry| fs::read(entry.path()).unwrap_or_default() == b"lost\n")
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn uninterrupted_log() {
    uninterrupted(&SUBJECT);
}

#[test]
fn sabotaged_log() {
    sabotaged(&SUBJECT);
}

#[test]
fn truncate_is_the_default_and_keeps_what_it_cuts() {
    let mut job = lost_job();
    job.restore(&[]);
    job.finish();
    assert_eq!(
        fs::read_to_string(job.work.join("log")).unwrap(),
        "before\nafter\n"
    );
    let kept = kept_beside(&job.work);
    assert!(
        kept.len() == 1 && kept[0].contains("log"),
        "beside the log: {kept:?}"
    );
}

#[test]
fn truncating_twice_keeps_both_pieces() {
    let mut job = lost_job();
    job.restore(&["--files", "truncate"]);
    job.finish();
    fs::write(job.work.join("log"), "before\nother\n").unwrap();
    job.restore(&["--files", "truncate"]);
    job.finish();
    assert_eq!(kept_beside(&job.work).len(), 1);
    let pieces = fs::read_dir(&job.work).unwrap().flatten();
    let others = pieces
        .filter(|entry| fs::read(entry.path()).unwrap_or_default() == b"other\n")
        .count();
    assert_eq!(others, 1, "the second piece replaced the first or is lost");
}

/// With its content in the image, a file comes back whatever has become of it, and what it held is kept.
#[test]
fn saved_files_come_back() {
    for deleted in [false, true] {
        let mut job = Job::start(&SUBJECT).expect("this needs nothing special");
        let _ = job.checkpoint(&["--save-files"]).expect(0);
        job.kill_all();
        let log = job.work.join("log");
        if deleted {
            fs::remove_file(&log).unwrap();
        } else {
            fs::write(&log, "lost\n").unwrap();
        }
        job.go();
        job.restore(&[]);
        job.finish();
        assert_eq!(fs::read_to_string(&log).unwrap(), "before\nafter\n");
        assert_eq!(kept_beside(&job.work).len(), usize::from(!deleted));
    }
}

/// The same, restored twice: nothing that has not changed is kept.
#[test]
fn saved_files_of_a_chain() {
    let mut job = Job::start(&SUBJECT).expect("this needs nothing special");
    for _ in 0..2 {
        let _ = job.checkpoint(&["--save-files", "--incremental"]).expect(0);
    }
    for _ in 0..2 {
        job.kill_all();
        job.restore(&["--incremental", "--save-files"]);
        job.await_running();
    }
    job.go();
    job.finish();
    assert_eq!(
        fs::read_to_string(job.work.join("log")).unwrap(),
        "before\nafter\n"
    );
    let beside = fs::read_dir(&job.work).unwrap().flatten();
    let beside = beside.filter(|entry| entry.file_name().to_string_lossy().contains("ckptd"));
    assert_eq!(beside.count(), 0);
}

#[test]
fn keep_leaves_the_file_alone() {
    let mut job = lost_job();
    job.restore(&["--files", "keep"]);
    assert_eq!(job.wait(), 1, "the subject finds the lost line\n{job}");
    assert_eq!(
        fs::read_to_string(job.work.join("log")).unwrap(),
        "before\nlost\nafter\n"
    );
    assert!(kept_beside(&job.work).is_empty());
}

#[test]
fn fail_refuses_and_names_the_file() {
    let job = lost_job();
    let output = tests::run(
        job.ckptd("restore")
            .args(["--files", "fail"])
            .arg(&job.name),
    );
    let log = job.work.join("log");
    let _ = output.expect(3).expect_message(&[log.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(log).unwrap(), "before\nlost\n");
    assert!(job.processes().is_empty(), "{job}");
}

#[test]
fn a_missing_file_is_refused_by_name() {
    let job = lost_job();
    let log = job.work.join("log");
    fs::rename(&log, job.work.join("elsewhere")).unwrap();
    let output = tests::run(job.ckptd("restore").arg(&job.name));
    let _ = output.expect(3).expect_message(&[log.to_str().unwrap()]);
    assert!(job.processes().is_empty(), "{job}");
}

#[test]
fn a_file_cut_shorter_is_refused_by_name() {
    let job = lost_job();
    let log = job.work.join("log");
    fs::write(&log, "bef").unwrap();
    let output = tests::run(job.ckptd("restore").arg(&job.name));
    let _ = output.expect(3).expect_message(&[log.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(log).unwrap(), "bef");
}

#[test]
fn a_different_binary_is_refused_by_name() {
    let built = SUBJECT.build().unwrap();
    let mut job = Job::prepare("different-binary");
    let program = job.work.join("program");
    fs::copy(&built, &program).unwrap();
    job.run(&[program.as_os_str(), job.work.clone().as_os_str()], &[]);
    wait_for("READY", || job.work.join("ready").exists().then_some(()));
    let _ = job.checkpoint(&[]).expect(0);
    job.kill_all();
    fs::remove_file(&program).unwrap();
    fs::copy(Subject::new("heap").build().unwrap(), &program).unwrap();
    let output = tests::run(job.ckptd("restore").arg(&job.name));
    let _ = output
        .expect(3)
        .expect_message(&[program.to_str().unwrap()]);
    assert!(job.processes().is_empty(), "{job}");
}
