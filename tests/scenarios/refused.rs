//! Jobs that hold what cannot be restored: refused at the checkpoint, by process and descriptor, and unharmed.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::fs;

use tests::{Job, Subject, is_root, sabotaged, skip, uninterrupted};

/// Checkpoints a subject, expects a refusal that names what it holds, and that the job goes on to its PASS.
fn refused(name: &'static str, what: &[&str], arguments: &[&str]) {
    let Some(mut job) = Job::start(&Subject::new(name)) else {
        return;
    };
    let told = |file: &str| fs::read_to_string(job.work.join(file)).ok();
    let descriptor = told("descriptor");
    let pid = told("pid").unwrap_or_else(|| job.processes()[0].to_string());
    let output = job
        .checkpoint(arguments)
        .expect(1)
        .expect_message(&[pid.trim()])
        .expect_message(what);
    if let Some(descriptor) = descriptor {
        let _ = output.expect_message(&[descriptor.trim()]);
    }
    // With --kill too, the job lives.
    let _ = job.checkpoint(&[arguments, &["--kill"]].concat()).expect(1);
    assert!(
        job.stored().is_empty(),
        "something was written: {:?}",
        job.stored()
    );
    job.go();
    job.finish();
}

macro_rules! refusals {
    ($($name:ident: $what:expr $(, $argument:literal)*;)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn uninterrupted() { super::uninterrupted(&Subject::new(stringify!($name))); }
            #[test]
            fn sabotaged() { super::sabotaged(&Subject::new(stringify!($name))); }
            #[test]
            fn is_refused() { refused(stringify!($name), &$what, &[$($argument),*]); }
        })*
    };
}

refusals! {
    refused_io_uring: ["io_uring"];
    refused_aio: ["aio", "io_destroy"];
    refused_userfaultfd: ["userfaultfd"];
    refused_child: ["socket"];
    refused_dnotify: ["F_NOTIFY"];
    refused_perf: ["perf_event_open"];
    refused_secret: ["memfd_secret"];
    refused_traced: ["is tracing it"];
    refused_sem_undo: ["SEM_UNDO"], "--no-bpf";
    refused_keys: ["its keys", "session"];
    refused_landlock: ["Landlock"];
    refused_rights: ["given up", "secret"];
    refused_thread_files: ["descriptor table of its own"];
    refused_children: ["its children", "unshare"];
    refused_packet_ring: ["ring", "socket"];
}

/// What is refused is refused through `--pid` as well.
#[test]
fn refused_by_pid() {
    if !is_root() {
        return skip("refused_by_pid", "only root may checkpoint any process");
    }
    let Some(mut job) = Job::start_alone(&Subject::new("refused_packet_ring"), &[]) else {
        return;
    };
    let pid = job.supervisor().unwrap().to_string();
    let _ = tests::run(job.ckptd("checkpoint").args(["--pid", &pid]))
        .expect(1)
        .expect_message(&[&pid, "77", "socket"]);
    job.go();
    job.finish();
}

/// What is undone on semaphores is known to eBPF.
#[test]
fn sem_undo_with_bpf() {
    let Some(mut job) = Job::start(&Subject::new("refused_sem_undo")) else {
        return;
    };
    let output = job.checkpoint(&["--kill", "--bpf"]);
    if output.code() == 1 && output.stderr.contains("eBPF") {
        return skip("sem_undo_with_bpf", "eBPF cannot be had here");
    }
    let _ = output.expect(0);
    job.kill_all();
    job.go();
    job.restore(&[]);
    job.finish();
}
