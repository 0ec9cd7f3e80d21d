//! What another host, or another boot of the same, would be like: other clocks, other users, control groups that are gone.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use tests::{Job, Subject, is_root, run, skip};

/// A job that began when the clocks were much further, as on another boot, and its restores.
#[test]
fn clocks_go_on() {
    let program = Subject::new("clocks").build().unwrap();
    let mut job = Job::prepare("clocks");
    let other = ["--time", "--monotonic", "5000000", "--boottime", "6000000"];
    let possible = Command::new("unshare").args(other).arg("true").status();
    if !is_root() || !possible.is_ok_and(|status| status.success()) {
        return skip("clocks_go_on", "time namespaces cannot be made here");
    }
    let mut words = vec![OsStr::new("unshare")];
    words.extend(other.map(OsStr::new));
    let work = job.work.clone();
    words.extend([program.as_os_str(), work.as_os_str(), OsStr::new("1000")]);
    job.run(&words, &[]);
    assert!(job.await_ready("clocks"));
    let _ = job.checkpoint(&[]).expect(0);
    job.kill_all();
    job.restore(&[]);
    job.await_running();
    // From the new namespace, by a ckptd that has made it, and then by one that has not.
    let _ = job.checkpoint(&["--kill"]).expect(0);
    job.kill_all();
    job.restore(&["--lazy"]);
    job.await_running();
    let pid = run(job.ckptd("list").arg("--json")).json()[0]["pid"].to_string();
    let copy = format!("{}-copy", job.name);
    let _ = run(job
        .ckptd("checkpoint")
        .args(["--pid", &pid, "--name", &copy]))
    .expect(0);
    job.go();
    job.finish();
}

/// A second copy beside the first: its pids, ports and System V objects are the same, in namespaces of its own.
#[test]
fn a_second_copy_beside_the_first() {
    if !is_root() {
        return skip("a_second_copy_beside_the_first", "needs to be root");
    }
    for subject in ["tcp", "sysv_sem", "unix_pairs"] {
        let Some(mut first) = Job::start(&Subject::new(subject)) else {
            continue;
        };
        let _ = first.checkpoint(&[]).expect(0);
        // Under its own name it would run twice.
        let refused = run(first.ckptd("restore").arg(&first.name)).expect(1);
        let _ = refused.expect_message(&["running already", "--as"]);
        let second = format!("{}-2", first.name);
        let mut copy = first.beside();
        copy.restore(&["--as", &second]);
        copy.name.clone_from(&second);
        copy.await_running();
        // Which can be saved and restored as well.
        let _ = run(first.ckptd("checkpoint").args(["--kill", &second])).expect(0);
        let _ = copy.wait();
        copy.restore(&[]);
        copy.await_running();
        first.go();
        copy.finish();
        first.finish();
    }
}

#[test]
fn lost_control_groups_are_made() {
    let Some(mut job) = Job::start(&Subject::new("cgroups")) else {
        return;
    };
    let _ = job.checkpoint(&["--kill"]).expect(0);
    job.kill_all();
    let root = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let mut removed = 0;
    for above in root.chain(["/sys/fs/cgroup".into()]) {
        for entry in fs::read_dir(above).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let own = name
                .strip_prefix("subject-")
                .is_some_and(|pid| fs::metadata(format!("/proc/{pid}")).is_err());
            if own
                && fs::read_to_string(entry.path().join("cgroup.procs"))
                    .is_ok_and(|all| all.is_empty())
            {
                removed += usize::from(fs::remove_dir(entry.path()).is_ok());
            }
        }
    }
    assert!(removed > 0);
    job.go();
    job.restore(&[]);
    job.finish();
}

/// With a list of users in which one is missing.
#[test]
fn missing_users_are_named() {
    if !is_root() {
        return skip("missing_users_are_named", "needs to be root");
    }
    let Some(mut job) = Job::start(&Subject::new("files")) else {
        return;
    };
    let _ = job.checkpoint(&["--kill"]).expect(0);
    job.kill_all();
    let list = job.work.join("passwd");
    fs::write(&list, "admin:x:0:0::/:/bin/sh\n").unwrap();
    let restore = job.ckptd("restore");
    let words = restore
        .get_args()
        .map(|word| word.to_string_lossy().into_owned());
    let words = words.collect::<Vec<_>>().join(" ");
    let line = format!(
        "mount --bind {} /etc/passwd && exec {} {words} {}",
        list.display(),
        restore.get_program().to_string_lossy(),
        job.name
    );
    let mut command = Command::new("unshare");
    let refused = run(command.args(["--mount", "sh", "-c", &line])).expect(3);
    let _ = refused.expect_message(&["user 0 (root)", "called admin here", "useradd"]);
    assert!(job.processes().is_empty());
    job.go();
    job.restore(&[]);
    job.finish();
}
