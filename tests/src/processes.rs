//! The processes of a job, found by a mark in their environment and by descent, so that even those that a restore has
//! only half made are found.

use std::collections::HashMap;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The environment variable that marks every process of a job, its supervisor included.
pub(crate) const MARK: &str = "CKPTD_TEST_JOB";

/// The state letter and the parent of a process (or `PID/task/TID`), as its `stat` has them.
fn stat(process: &str) -> Option<(char, i32)> {
    let text = fs::read(format!("/proc/{process}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut fields = text.get(text.rfind(')')? + 2..)?.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The thread through which a process is seen, as `PID/task/TID`: its main thread, or where that has ended one that has not.
fn speaker(pid: i32) -> String {
    let leader = format!("{pid}/task/{pid}");
    if stat(&leader).is_some_and(|(state, _)| state != 'Z') {
        return leader;
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let mut threads = threads.into_iter().flatten().flatten().map(|thread| {
        let tid = thread.file_name();
        format!("{pid}/task/{}", tid.to_string_lossy())
    });
    let lives = |thread: &String| stat(thread).is_some_and(|(state, _)| !"ZX".contains(state));
    threads.find(lives).unwrap_or(leader)
}

/// The state letter of a process, none when it is gone. Of a process whose main thread has ended, that of another.
#[must_use]
pub fn state(pid: i32) -> Option<char> {
    stat(&speaker(pid)).map(|(state, _)| state)
}

/// Whether a process exists and is no zombie.
#[must_use]
pub fn alive(pid: i32) -> bool {
    state(pid).is_some_and(|state| !"ZX".contains(state))
}

/// Every living process with `marker` in its environment, and all their descendants.
#[must_use]
pub fn marked(marker: &str) -> Vec<i32> {
    let needle = format!("{MARK}={marker}");
    let mut parents = HashMap::new();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Some((_, parent)) = stat(&pid.to_string()) else {
            continue;
        };
        if !alive(pid) {
            continue;
        }
        parents.insert(pid, parent);
        let environment = fs::read(format!("/proc/{}/environ", speaker(pid))).unwrap_or_default();
        if environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == needle.as_bytes())
        {
            found.push(pid);
        }
    }
    loop {
        let more: Vec<i32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            found.sort_unstable();
            return found;
        }
        found.extend(more);
    }
}

/// Kills every process with `marker` by SIGKILL, again and again until none is left, and waits for the last to be gone.
///
/// # Panics
/// When they do not die.
pub fn kill_marked(marker: &str) {
    let mut killed = Vec::new();
    let mut quiet = 0;
    crate::wait_for("the job's processes to die", || {
        let found = marked(marker);
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        for pid in found {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            killed.push(pid);
        }
        // One that is dying has no environment any more; one between fork and exec can hide from a single look.
        (quiet >= 2 && !killed.iter().any(|pid| alive(*pid))).then_some(())
    });
}
