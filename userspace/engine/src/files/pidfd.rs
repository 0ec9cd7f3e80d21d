//! pidfd_open(2): descriptors of processes, those that have ended too.

use images::proto::open_file::Kind;
use images::proto::{OpenFile, PidFd};

use super::{Held, Making, Shell, Why};
use crate::procfs;

/// PIDFD_THREAD (Linux 6.9).
const THREAD: u32 = libc::O_EXCL as u32;

/// `NSpid` has the process's ids from our namespace to its own; -1 when it has been waited for.
pub(crate) fn capture(held: &Held) -> Kind {
    let ids = |name: &str| {
        let line = held.info.lines().find_map(|line| line.strip_prefix(name));
        let ids = line.unwrap_or_default().split_whitespace();
        ids.map(|id| id.parse().unwrap_or(0)).collect::<Vec<i32>>()
    };
    let inner = ids("NSpid:").last().copied().unwrap_or(-1).max(0);
    Kind::Pidfd(PidFd { pid: inner as u32 })
}

/// Refuses those of processes outside of the job.
pub(crate) fn finish(
    files: &[OpenFile],
    pending: &[(u32, Held)],
    members: &[u32],
    refuse: &mut dyn FnMut(&Held, Why),
) {
    for (id, held) in pending {
        let Some(Kind::Pidfd(pidfd)) = &files[*id as usize - 1].kind else {
            continue;
        };
        let outer = held.number("Pid").unwrap_or(0) as u32;
        if pidfd.pid == 0 || members.contains(&outer) {
            continue;
        }
        let thread = members
            .iter()
            .any(|&pid| procfs::threads(pid).contains(&outer));
        let why = if thread {
            format!("it stands for thread {outer}, which is not supported yet")
        } else {
            format!("it stands for process {outer}, which is not part of the job")
        };
        refuse(held, (why, "checkpoint when it is closed".to_owned()));
    }
}

pub(crate) fn open(shell: &mut Shell, pidfd: &PidFd, flags: u32) -> u32 {
    let flags = flags & (libc::O_NONBLOCK as u32 | THREAD);
    let label = format!("open process {}", pidfd.pid);
    let args = [pidfd.pid.into(), flags.into()];
    shell.open(libc::SYS_pidfd_open, &args, label)
}

/// Those of processes that have ended, by the process that makes them: number and flags.
pub(crate) fn dead(making: &Making<'_>, pid: u32) -> Vec<(u32, u32)> {
    let dead = |file: &&OpenFile| is_dead(file);
    let made = making.made_by(pid);
    let places = made.into_iter().filter(dead);
    places
        .map(|file| (making.place(file.id), file.flags & libc::O_NONBLOCK as u32))
        .collect()
}

/// Made from a helper that ends.
pub(crate) fn is_dead(file: &OpenFile) -> bool {
    matches!(&file.kind, Some(Kind::Pidfd(pidfd)) if pidfd.pid == 0)
}
