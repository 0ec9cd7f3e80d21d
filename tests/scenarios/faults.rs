//! Deaths and shortages in the middle of things: the job runs on as if nothing had been, and no half checkpoint is left.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{Job, Output, Place, Subject, is_root, run, skip, state, wait_for};

/// Moments at which something is killed, spread over one and a half times what it takes undisturbed: `CKPTD_TEST_KILLS`, else a few.
fn moments() -> u32 {
    let asked = std::env::var("CKPTD_TEST_KILLS").ok();
    asked.map_or(12, |asked| {
        asked.parse().expect("CKPTD_TEST_KILLS is a number")
    })
}

/// Waits until the job is there and none of its processes stands still because of us.
#[track_caller]
fn expect_running(job: &Job) {
    wait_for("the job to run on", || {
        let mut processes = job.processes();
        processes.extend(job.supervisor());
        let states: Vec<_> = processes.into_iter().filter_map(state).collect();
        (!states.is_empty() && states.iter().all(|state| "RSDZ".contains(*state))).then_some(())
    });
}

/// The job still does what it should, its store is whole, and it can still be checkpointed and restored.
#[track_caller]
fn expect_unharmed(mut job: Job) {
    if !job.manifests().is_empty() {
        let _ = run(job.ckptd("verify").arg(&job.name)).expect(0);
    }
    let _ = job.checkpoint(&[]).expect(0);
    let _ = run(job.ckptd("prune").arg(&job.name)).expect(0);
    let _ = run(job.ckptd("verify").arg(&job.name)).expect(0);
    job.kill_all();
    job.go();
    job.restore(&[]);
    job.finish();
}

/// Starts `ckptd checkpoint` of the job, to be killed.
fn spawn_checkpoint(job: &Job) -> Child {
    let mut command = job.ckptd("checkpoint");
    command
        .arg(&job.name)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

/// How long a checkpoint of the job takes undisturbed; at most two seconds.
fn time_checkpoint(job: &Job) -> Duration {
    let start = Instant::now();
    let _ = job.checkpoint(&[]).expect(0);
    start.elapsed().min(Duration::from_secs(2))
}

/// The moment number `moment` of [`moments`].
fn sleep_until(moment: u32, whole: Duration) {
    std::thread::sleep(whole * moment * 3 / (moments() * 2));
}

/// The supervisor takes the checkpoint: it is killed at many moments, each time with a job of its own.
fn kill_supervisor_at_many_moments(name: &'static str) {
    let mut whole = Duration::ZERO;
    for moment in 0..moments() {
        let Some(mut job) = Job::start(&Subject::new(name)) else {
            return;
        };
        if moment == 0 {
            whole = time_checkpoint(&job);
        }
        job.await_running();
        let mut child = spawn_checkpoint(&job);
        sleep_until(moment, whole);
        kill(Pid::from_raw(job.supervisor().unwrap()), Signal::SIGKILL).unwrap();
        let _ = job.wait();
        wait_for("the checkpoint to end", || child.try_wait().unwrap());
        expect_running(&job);
        if moment % 8 == 7 {
            expect_unharmed(job);
        } else {
            job.go();
            wait_for("the orphaned job to end well", || {
                job.output().ends_with("PASS\n").then_some(())
            });
        }
    }
}

/// Without a supervisor `ckptd checkpoint` does the work itself: it is killed at many moments, always with the same job.
fn kill_checkpoint_at_many_moments(name: &'static str) {
    let Some(mut job) = Job::start(&Subject::new(name)) else {
        return;
    };
    job.await_running();
    kill(Pid::from_raw(job.supervisor().unwrap()), Signal::SIGKILL).unwrap();
    let _ = job.wait();
    let whole = time_checkpoint(&job);
    for moment in 0..moments() {
        let mut child = spawn_checkpoint(&job);
        sleep_until(moment, whole);
        let _ = child.kill();
        let _ = child.wait();
        expect_running(&job);
    }
    expect_unharmed(job);
}

/// One test for each death, for each of these subjects.
macro_rules! killed {
    ($($name:ident)*) => {
        mod kill_supervisor {
            $(#[test]
            fn $name() { super::kill_supervisor_at_many_moments(stringify!($name)); })*
        }
        mod kill_checkpoint {
            $(#[test]
            fn $name() { super::kill_checkpoint_at_many_moments(stringify!($name)); })*
        }
    };
}

killed! { many_processes many_threads registers sigmask pipes forking }

#[test]
fn killing_restore_leaves_all_or_nothing() {
    let Some(mut job) = Job::start(&Subject::new("many_processes")) else {
        return;
    };
    let _ = job.checkpoint(&[]).expect(0);
    let count = own_processes(&job).len();
    job.kill_all();
    let start = Instant::now();
    job.restore(&[]);
    wait_for("the job to be there again", || {
        (own_processes(&job).len() == count).then_some(())
    });
    let whole = start.elapsed().min(Duration::from_secs(2));
    job.kill_all();
    for moment in 0..moments() {
        job.restore(&[]);
        sleep_until(moment, whole);
        kill(Pid::from_raw(job.supervisor().unwrap()), Signal::SIGKILL).unwrap();
        let _ = job.wait();
        wait_for("all or nothing of the job to be left", || {
            let all = own_processes(&job).len() == count
                && job.processes().iter().all(|pid| state(*pid) != Some('t'));
            (all || job.processes().is_empty()).then_some(())
        });
        job.kill_all();
    }
    job.go();
    job.restore(&[]);
    job.finish();
}

/// The processes of the job that bear the subject's name: neither ckptd, nor an init, nor one that is half made.
fn own_processes(job: &Job) -> Vec<i32> {
    let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut found = job.processes();
    found.retain(|pid| job.name.starts_with(name(pid).trim()) && !name(pid).is_empty());
    found
}

/// A file system of its own, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    /// A tmpfs; none where it cannot be mounted.
    fn new(place: &Place, options: &str) -> Option<Self> {
        let path = place.path().join("mount");
        std::fs::create_dir(&path).unwrap();
        let output = run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(&path));
        if !is_root() || output.code() != 0 {
            skip("a file system of its own", "mounting needs root");
            return None;
        }
        Some(Self(path))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A subject without a supervisor, so that limits on `ckptd checkpoint` are limits on what takes the checkpoint.
fn unsupervised(name: &'static str) -> Option<Job> {
    if !is_root() {
        skip(name, "only root may checkpoint any process");
        return None;
    }
    Job::start_alone(&Subject::new(name), &[])
}

/// Runs `ckptd checkpoint` of an unsupervised job, with a store elsewhere, under shell limits. What it says goes through
/// a pipe, since a limit on file size would keep it from a file.
fn checkpoint_under(job: &Job, store: &Path, limits: &str) -> Output {
    let pid = job.supervisor().unwrap().to_string();
    let mut command = Command::new("bash");
    command.args([
        "-o",
        "pipefail",
        "-c",
        &format!("{{ {limits} \"$@\"; }} 2>&1 | cat >&2"),
        "bash",
    ]);
    command
        .arg(tests::binary())
        .args(["checkpoint", "--pid", &pid, "--name", &job.name, "--dir"])
        .arg(store);
    run(command.stdin(Stdio::null()))
}

/// No checkpoint is listed in `store`, and nothing there is a manifest.
#[track_caller]
fn expect_no_checkpoint(job: &Job, store: &Path) {
    let manifests = std::fs::read_dir(store.join(&job.name))
        .into_iter()
        .flatten()
        .flatten();
    let names: Vec<_> = manifests
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        !names.iter().any(|name| name.ends_with(".ckpt")),
        "half a checkpoint: {names:?}"
    );
}

/// The shortage makes the checkpoint fail with a message that has `words`; the job is unharmed.
fn shortage(subject: &'static str, store: &Path, limits: &str, words: &[&str]) {
    let Some(mut job) = unsupervised(subject) else {
        return;
    };
    let _ = checkpoint_under(&job, store, limits)
        .expect(1)
        .expect_message(words);
    expect_running(&job);
    expect_no_checkpoint(&job, store);
    let _ = checkpoint_under(&job, &job.store, "").expect(0);
    job.go();
    job.finish();
}

#[test]
fn a_full_disk() {
    let place = Place::new();
    if let Some(mount) = Mount::new(&place, "size=1m") {
        shortage(
            "anonymous",
            &mount.0,
            "",
            &[mount.0.to_str().unwrap(), "space"],
        );
    }
}

#[test]
fn a_disk_that_fills_at_every_point() {
    // From no room at all up to nearly enough, so that writing fails at different steps.
    for size in ["4k", "16k", "64k", "256k", "4m", "8m"] {
        let place = Place::new();
        if let Some(mount) = Mount::new(&place, &format!("size={size}")) {
            shortage("anonymous", &mount.0, "", &["space"]);
        }
    }
}

#[test]
fn a_disk_without_inodes() {
    let place = Place::new();
    if let Some(mount) = Mount::new(&place, "size=100m,nr_inodes=3") {
        shortage("anonymous", &mount.0, "", &[mount.0.to_str().unwrap()]);
    }
}

#[test]
fn a_read_only_directory() {
    let place = Place::new();
    if let Some(mount) = Mount::new(&place, "ro") {
        shortage("heap", &mount.0, "", &[mount.0.to_str().unwrap()]);
    }
}

#[test]
fn a_directory_that_is_a_file() {
    let place = Place::new();
    let file = place.path().join("file");
    std::fs::write(&file, "").unwrap();
    shortage("heap", &file, "", &[file.to_str().unwrap()]);
}

#[test]
fn a_limit_on_file_size() {
    let place = Place::new();
    for blocks in ["0", "8", "2000"] {
        shortage(
            "anonymous",
            &place.path().join("store"),
            &format!("ulimit -f {blocks};"),
            &["size"],
        );
    }
}

#[test]
fn a_limit_on_descriptors() {
    for limit in [4, 6, 8, 10, 12, 16, 24] {
        let Some(mut job) = Job::start(&Subject::new("children")) else {
            return;
        };
        let place = Place::new();
        let store = place.path().join("store");
        let output = checkpoint_under(&job, &store, &format!("ulimit -n {limit};"));
        // Where few are enough that is as well; else it says so.
        if output.code() != 0 {
            let _ = output.expect(1);
            expect_no_checkpoint(&job, &store);
        }
        expect_running(&job);
        job.go();
        job.finish();
    }
}

#[test]
fn a_limit_on_memory() {
    for kilobytes in [20_000, 50_000, 100_000] {
        let Some(mut job) = Job::start(&Subject::new("anonymous")) else {
            return;
        };
        let place = Place::new();
        let store = place.path().join("store");
        let output = checkpoint_under(&job, &store, &format!("ulimit -v {kilobytes};"));
        if output.code() != 0 {
            expect_no_checkpoint(&job, &store);
        }
        expect_running(&job);
        job.go();
        job.finish();
    }
}

/// The address space of some process of the job is full, so that nothing can be asked there.
#[test]
fn a_limit_on_the_jobs_memory() {
    let Some(job) = Job::start(&Subject::new("children")) else {
        return;
    };
    let limit = |to: &str| {
        for pid in job.processes() {
            let mut command = Command::new("prlimit");
            let _ = run(command.args(["--pid", &pid.to_string(), to])).expect(0);
        }
    };
    limit("--as=1000000:unlimited");
    let asking = job.checkpoint(&["--no-bpf"]);
    let _ = asking.expect(1).expect_message(&["RLIMIT_AS"]);
    expect_running(&job);
    assert!(job.manifests().is_empty());
    limit("--as=unlimited");
    expect_unharmed(job);
}

#[test]
fn two_checkpoints_at_once() {
    let Some(mut job) = Job::start(&Subject::new("many_processes")) else {
        return;
    };
    let spawn = || {
        job.ckptd("checkpoint")
            .arg(&job.name)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut both = [spawn(), spawn()];
    for child in &mut both {
        // One may find the other at work and say so.
        let status = wait_for("both checkpoints to end", || child.try_wait().unwrap());
        assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    }
    assert!(!job.manifests().is_empty());
    expect_running(&job);
    let _ = run(job.ckptd("verify").arg(&job.name)).expect(0);
    job.kill_all();
    job.go();
    job.restore(&[]);
    job.finish();
}
