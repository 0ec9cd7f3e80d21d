//! Files of /proc/PID: those of the job's own processes, by their ids inside the job.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

use images::proto::OpenFile;
use images::proto::open_file::Kind;

use super::{Held, Why};

/// "/proc/12/status": 12 and "status".
fn split(path: &str) -> Option<(u32, &str)> {
    let rest = path.strip_prefix("/proc/")?;
    let (pid, rest) = rest.split_once('/').unwrap_or((rest, ""));
    Some((pid.parse().ok()?, rest))
}

pub(crate) fn is_of_process(path: &str) -> bool {
    split(path).is_some()
}

/// Names files by the pids that the job knows; `members` has them by those that we know.
pub(crate) fn finish(
    files: &mut [OpenFile],
    pending: &[(u32, Held)],
    members: &HashMap<u32, u32>,
    refuse: &mut dyn FnMut(&Held, Why),
) {
    let ours = std::fs::metadata("/proc").map_or(0, |meta| meta.dev());
    // The /proc of the job's own pid namespace names processes as the job does.
    let inner = |held: &Held, pid: u32| {
        if held.meta.dev() == ours {
            members.get(&pid).copied()
        } else {
            members.values().copied().find(|&inner| inner == pid)
        }
    };
    for (id, held) in pending {
        let path = match &mut files[*id as usize - 1].kind {
            Some(Kind::Regular(regular)) => &mut regular.path,
            Some(Kind::Directory(directory)) => &mut directory.path,
            Some(Kind::Path(path)) => &mut path.path,
            _ => continue,
        };
        let Some((pid, rest)) = split(path) else {
            continue;
        };
        match (inner(held, pid), restorable(pid, rest)) {
            (Some(inner), true) => *path = format!("/proc/{inner}/{rest}"),
            (None, _) => {
                let why = format!("process {pid} is not part of the job, or has ended");
                refuse(held, (why, "checkpoint when it is closed".to_owned()));
            }
            (_, false) => {
                let why = "it may not be there yet when it is opened again".to_owned();
                refuse(held, (why, "checkpoint when it is closed".to_owned()));
            }
        }
    }
}

/// Threads, descriptors and mappings are not all there when files are opened.
fn restorable(pid: u32, rest: &str) -> bool {
    let own = format!("task/{pid}");
    let rest = rest
        .strip_prefix(&own)
        .map_or(rest, |r| r.trim_start_matches('/'));
    let late = ["task/", "fd/", "fdinfo/", "map_files/", "ns/"];
    !late.iter().any(|prefix| rest.starts_with(prefix)) && !rest.ends_with(" (deleted)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(split("/proc/12/status"), Some((12, "status")));
        assert_eq!(split("/proc/12"), Some((12, "")));
        assert_eq!(split("/proc/sys/kernel"), None);
        assert!(restorable(12, "task/12/comm") && restorable(12, "fd"));
        assert!(!restorable(12, "task/13/comm") && !restorable(12, "fd/3"));
    }
}
