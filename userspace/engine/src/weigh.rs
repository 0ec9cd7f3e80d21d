//! How much of a job's state there is to read, to choose the way that reads it soonest.

use std::io::Read;
use std::time::Duration;

use crate::members::Members;
use crate::procfs::Status;
use crate::{Scope, procfs};

/// How much sooner a job must run again for BPF programs to be loaded: that takes twice as long, but the job runs meanwhile.
const ENOUGH: Duration = Duration::from_millis(12);

// What reading by BPF programs saves, about, in nanoseconds.
const A_PROCESS: u64 = 1_000_000;
const A_THREAD: u64 = 280_000;
const A_DESCRIPTOR: u64 = 29_000;
const A_MAPPING: u64 = 7_000;
/// smaps goes through the page tables.
const A_RESIDENT_PAGE: u64 = 200;

/// Whether BPF programs are worth loading to read a job's state: when there is much of it, or when they alone tell until when somebody waits,
/// or whether somebody is confined by Landlock.
///
/// Estimated from how many processes, threads, descriptors, mappings and pages it has; a small one is looked at for some 100 µs.
pub fn needs_bpf(scope: Scope) -> bool {
    let mut left = ENOUGH.as_nanos() as u64;
    let mut enough = |each: u64, count: u64| {
        left = left.saturating_sub(each.saturating_mul(count));
        left == 0
    };
    let processes = Members::now(scope, None).order;
    enough(A_PROCESS, processes.len() as u64)
        || processes.into_iter().any(|pid| {
            let count = |folder: &str| procfs::numbered(&format!("/proc/{pid}/{folder}")).len();
            let threads = procfs::threads(pid);
            threads.iter().any(|&tid| waits_again(pid, tid))
                || may_be_confined(pid)
                || enough(A_THREAD, threads.len() as u64)
                || enough(A_RESIDENT_PAGE, procfs::resident(pid))
                || enough(A_DESCRIPTOR, count("fd") as u64)
                || has_lines(&format!("/proc/{pid}/maps"), |lines| {
                    enough(A_MAPPING, lines)
                })
        })
}

/// Whether a thread goes on with a wait that was interrupted, by an earlier checkpoint for example: from outside the kernel nobody can tell when
/// it began.
fn waits_again(pid: u32, tid: u32) -> bool {
    let call = remote::sys::read_text(format!("/proc/{pid}/task/{tid}/syscall"));
    let restart = libc::SYS_restart_syscall.to_string();
    call.is_ok_and(|call| call.split(' ').next() == Some(restart.as_str()))
}

/// Whether a process has done what comes before landlock_restrict_self(2), unless it has CAP_SYS_ADMIN.
fn may_be_confined(pid: u32) -> bool {
    Status::read(pid).is_ok_and(|status| status.number("NoNewPrivs") != 0)
}

/// Whether counting the lines of a file piece by piece is `enough` before its end.
fn has_lines(path: &str, mut enough: impl FnMut(u64) -> bool) -> bool {
    let Ok(mut file) = std::fs::File::open(path) else {
        return false;
    };
    let mut piece = [0; 4096];
    while let Ok(size @ 1..) = file.read(&mut piece) {
        let lines = piece[..size].iter().filter(|&&byte| byte == b'\n').count();
        if enough(lines as u64) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_mappings_and_threads_count() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let scope = Scope::Tree { root: child.id() };
        assert!(!needs_bpf(scope));
        let _ = child.kill();
        let _ = child.wait();
        let lines = |enough: u64| {
            let mut seen = 0;
            has_lines("/proc/self/maps", |lines| {
                seen += lines;
                seen >= enough
            })
        };
        assert!(lines(2) && !lines(1 << 40));
    }
}
