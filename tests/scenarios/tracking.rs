//! What ckptd knows of a job while it runs: what could not be checkpointed, who belongs to it, and who supervises it.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::{Job, Subject, binary, helper, is_root, run, skip, wait_for};

/// What `ckptd list --json` says of the job.
fn listed(job: &Job) -> Value {
    let all = run(job.ckptd("list").arg("--json")).expect(0).json();
    let named = |entry: &&Value| entry["name"] == job.name.as_str();
    all.as_array().unwrap().iter().find(named).cloned().unwrap()
}

/// Waits until the kernel tells of the job; false where it does not.
fn is_followed(job: &Job) -> bool {
    if !is_root() {
        skip("following a job", "only root may load eBPF programs");
        return false;
    }
    if std::env::var_os("CKPTD_NO_BPF").is_some() {
        skip("following a job", "CKPTD_NO_BPF is set");
        return false;
    }
    wait_for("the job to be followed", || {
        listed(job)["watched"]["followed"]["processes"].as_u64()
    });
    true
}

/// Waits until so many processes are followed.
#[track_caller]
fn expect_followed(job: &Job, processes: u64) {
    let mut last = Value::Null;
    let found = tests::wait_at_most(Duration::from_secs(60), || {
        last = listed(job)["watched"]["followed"].clone();
        (last["processes"] == processes).then_some(())
    });
    assert!(
        found.is_some(),
        "{processes} processes, but followed: {last}\n{job}"
    );
}

/// How many processes its latest checkpoint holds.
fn saved(job: &Job) -> usize {
    let shown = run(job.ckptd("show").args(["--json", &job.name]))
        .expect(0)
        .json();
    shown["processes"].as_array().unwrap().len()
}

/// `CKPTD_TEST_LOOKS` checkpoints, else some: what was seen before the job stood still is in none of them that has changed since.
#[test]
fn nothing_is_believed_that_has_changed_since() {
    let looks = std::env::var("CKPTD_TEST_LOOKS").unwrap_or_else(|_| "8".into());
    let looks: usize = looks.parse().unwrap();
    let Some(mut job) = Job::start(&Subject::new("remapping")) else {
        return;
    };
    for look in 0..looks {
        // Mappings change in one way for some 30 ms.
        std::thread::sleep(Duration::from_millis((look * 7 % 30) as u64));
        let way: &[&str] = if look % 2 == 0 {
            &["--bpf"]
        } else {
            &["--bpf", "--incremental"]
        };
        let _ = job.checkpoint(way).expect(0);
    }
    job.kill_all();
    job.go();
    for sequence in 1..=looks {
        // What the job has said since would be cut off.
        job.restore(&["--files", "keep", "--at", &sequence.to_string()]);
        let code = job.wait();
        assert!(
            code == 0 && job.output().ends_with("PASS\n"),
            "checkpoint {sequence}: exit status {code}\n{job}"
        );
    }
}

fn end(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_for("it to end", || (!tests::alive(pid)).then_some(()));
}

#[test]
fn what_cannot_be_saved_is_told_at_once() {
    let Some(mut job) = Job::start(&Subject::new("refused_io_uring")) else {
        return;
    };
    let told = wait_for("the warning", || {
        listed(&job)["watched"]["obstacles"]
            .as_array()?
            .first()
            .cloned()
    });
    assert!(
        told["what"].as_str().unwrap().contains("io_uring"),
        "{told}"
    );
    assert!(
        job.processes()
            .contains(&(told["pid"].as_i64().unwrap() as i32))
    );
    let text = run(&mut job.ckptd("list")).stdout;
    assert!(
        text.contains("cannot be checkpointed") && text.contains("io_uring"),
        "{text}"
    );
    // Once, however often it is seen.
    std::thread::sleep(Duration::from_millis(2500));
    let said = job.log();
    assert_eq!(said.matches("cannot be checkpointed").count(), 1, "{said}");
    job.go();
    job.finish();
}

#[test]
fn an_ordinary_job_is_not_warned_of() {
    let Some(mut job) = Job::start(&Subject::new("children")) else {
        return;
    };
    if is_followed(&job) {
        std::thread::sleep(Duration::from_millis(2500));
    }
    assert_eq!(job.log(), "");
    job.go();
    job.finish();
}

#[test]
fn a_job_that_outlives_its_supervisor_is_supervised_again() {
    let mut job = Job::prepare("outlived");
    let go = job.work.join("go");
    // The daemon's parent has ended when somebody looks.
    let script = format!(
        "sleep 300 & echo ready; until [ -e {} ]; do sleep 0.05; done; (setsid sleep 301 & echo daemon); wait",
        go.display()
    );
    job.run(&["bash", "-c", &script], &[]);
    wait_for("the job", || job.output().contains("ready").then_some(()));
    let pid = wait_for("its entry", || listed(&job)["pid"].as_i64());
    end(job.supervisor().unwrap());
    // Without supervisor it is taken by whoever asks, and runs on.
    let _ = job.checkpoint(&[]).expect(0);
    let mut attach = Command::new(binary());
    attach.args(["attach", "--every", "1h", &job.name]);
    job.spawn(attach);
    wait_for("the new supervisor", || {
        job.log().contains("supervised again").then_some(())
    });
    let _ = run(Command::new(binary()).args(["attach", &job.name]))
        .expect(1)
        .expect_message(&["has a supervisor"]);
    let followed = is_followed(&job);
    job.go();
    wait_for("the daemon", || {
        job.output().contains("daemon").then_some(())
    });
    let _ = job.checkpoint(&[]).expect(0);
    if followed {
        // bash, sleep and the daemon, which is nobody's child any more.
        expect_followed(&job, 3);
        assert_eq!(saved(&job), 3);
    }
    // This one ends, the job does not.
    kill(Pid::from_raw(job.supervisor().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(job.wait(), 0);
    assert_eq!(listed(&job)["pid"].as_i64(), Some(pid));
    let _ = job.checkpoint(&[]).expect(0);
}

/// `CKPTD_TEST_STORM` forks, else some.
#[test]
fn a_storm_of_forks_costs_nothing_but_a_look() {
    let forks = std::env::var("CKPTD_TEST_STORM").unwrap_or_else(|_| "10000".into());
    let mut job = Job::prepare("storm");
    let program = helper("storm");
    let mut command = job.ckptd("run");
    command.args(["--name", &job.name, "--track-processes", "16", "--"]);
    command.args(["bash", "-c"]);
    // Followed from before the storm on.
    command.arg(format!(
        "cd {}; until [ -e storm ]; do sleep 0.05; done; exec {} 40 {forks}",
        job.work.display(),
        program.display()
    ));
    job.spawn(command);
    wait_for("the job", || (!job.processes().is_empty()).then_some(()));
    let followed = is_followed(&job);
    std::fs::write(job.work.join("storm"), "").unwrap();
    wait_for("the storm to be over", || {
        job.output().contains("over").then_some(())
    });
    let _ = job.checkpoint(&[]).expect(0);
    assert_eq!(saved(&job), 41);
    if followed {
        let forks: u64 = forks.parse().unwrap();
        // A hundredth of them comes from within the picture, or it does not if there was no room for that one either.
        wait_for("the loss to be told", || {
            (listed(&job)["watched"]["followed"]["missed"].as_u64()? >= forks / 100).then_some(())
        });
        let text = run(&mut job.ckptd("list")).stdout;
        assert!(text.contains("not followed, for lack of room"), "{text}");
        expect_followed(&job, 16);
    }
    job.go();
    assert_eq!(job.wait(), 0);
}

#[test]
fn two_at_once_do_not_disturb_each_other() {
    let start = |children: usize| {
        let mut job = Job::prepare("beside");
        let script = format!("for n in $(seq {children}); do sleep 300 & done; echo ready; wait");
        job.run(&["bash", "-c", &script], &[]);
        wait_for("the job", || job.output().contains("ready").then_some(()));
        job
    };
    let (one, other) = (start(3), start(5));
    let both = is_followed(&one) && is_followed(&other);
    if both {
        expect_followed(&one, 4);
        expect_followed(&other, 6);
    }
    // One supervisor's end is nothing to the other's.
    end(one.supervisor().unwrap());
    if both {
        expect_followed(&other, 6);
    }
    let _ = other.checkpoint(&["--kill"]).expect(0);
    let _ = one.checkpoint(&[]).expect(0);
    assert_eq!((saved(&one), saved(&other)), (4, 6));
}
