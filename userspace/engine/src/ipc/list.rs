//! What the kernel lists of the System V objects there are.

use std::collections::HashMap;

use images::proto::IpcObject;
pub(crate) use remote::ipc::Kind;
use remote::sys;

use crate::procfs::{Stat, Status};

/// A line of /proc/sysvipc/{shm,sem,msg}.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line(HashMap<String, i64>);

impl Line {
    pub(super) fn number(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0) as u64
    }

    /// Whether the process with a number that stands here is the one that is meant: the numbers of processes that have ended are given
    /// to others, who were started after all that was done with the object.
    pub(super) fn is_by(&self, pid: u32) -> bool {
        let times = ["ctime", "otime", "stime", "rtime", "atime", "dtime"];
        let last = times.map(|name| self.number(name)).into_iter().max();
        began(pid).map(|began| began / NS_PER_S) <= last
    }

    pub(super) fn id(&self, kind: Kind) -> u32 {
        self.number(match kind {
            Kind::Segment => "shmid",
            Kind::Semaphores => "semid",
            Kind::Queue => "msqid",
        }) as u32
    }

    pub(super) fn object(&self, kind: Kind) -> IpcObject {
        let number = |name: &str| self.number(name) as u32;
        IpcObject {
            id: self.id(kind),
            key: number("key") as i32,
            mode: number("perms") & 0o777,
            uid: number("uid"),
            gid: number("gid"),
            creator_uid: number("cuid"),
            creator_gid: number("cgid"),
        }
    }
}

pub(super) fn table(kind: Kind) -> &'static str {
    match kind {
        Kind::Segment => "shm",
        Kind::Semaphores => "sem",
        Kind::Queue => "msg",
    }
}

/// All objects of a kind.
pub(crate) fn list(kind: Kind) -> Vec<Line> {
    let path = format!("/proc/sysvipc/{}", table(kind));
    parse(&sys::read_text(path).unwrap_or_default())
}

/// The first line names the columns (ipc/shm.c, sysvipc_shm_proc_show); the mode alone is octal.
pub(super) fn parse(text: &str) -> Vec<Line> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let line = |line: &str| {
        let values = line.split_whitespace();
        let value = |(name, value): (&&str, &str)| {
            let base = if *name == "perms" { 8 } else { 10 };
            Some(((*name).to_owned(), i64::from_str_radix(value, base).ok()?))
        };
        Line(names.iter().zip(values).filter_map(value).collect())
    };
    lines.map(line).collect()
}

pub(super) const NS_PER_S: u64 = 1_000_000_000;

/// When a process was started, in ns since the epoch.
pub(super) fn began(pid: u32) -> Option<u64> {
    // Clock ticks of 10 ms since boot (USER_HZ).
    let after_boot = Stat::read(pid).ok()?.field(22) as u64 * 10_000_000;
    let boot = sys::clock(libc::CLOCK_REALTIME).saturating_sub(sys::clock(libc::CLOCK_BOOTTIME));
    Some(boot + after_boot)
}

/// Whether there is such a process that has not ended.
pub(super) fn is_alive(pid: u32) -> bool {
    pid != 0 && Status::read(pid).is_ok_and(|status| !matches!(status.state(), 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let text = "       key      msqid perms      cbytes       qnum lspid lrpid   uid\n -559038737         98304   640           5          1  5102     0  1000\n";
        let lines = parse(text);
        let object = lines[0].object(Kind::Queue);
        assert_eq!(
            (object.id, object.key, object.mode, object.uid),
            (98304, -559_038_737, 0o640, 1000)
        );
        assert_eq!(lines[0].number("lspid"), 5102);
    }

    #[test]
    fn a_number_that_was_given_again_is_nobody_who_used_it() {
        let pid = std::process::id();
        let now = sys::clock(libc::CLOCK_REALTIME) / NS_PER_S;
        let line = |last: u64| {
            Line(HashMap::from([
                ("otime".into(), last as i64),
                ("ctime".into(), 1),
            ]))
        };
        assert!(line(now + 1).is_by(pid));
        assert!(!line(now - 86_400 * 365 * 20).is_by(pid));
    }
}
