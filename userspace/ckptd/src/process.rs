//! Processes as the kernel shows them in /proc.

use serde::{Deserialize, Serialize};
use std::fs;

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// The pid.
    pub pid: u32,
    /// When it started: clock ticks since boot (proc_pid_stat(5), field 22).
    pub start: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Some(Self {
            pid,
            start: Stat::read(pid)?.start,
        })
    }

    /// This process itself.
    pub(crate) fn own() -> Self {
        let pid = std::process::id();
        Self::of(pid).unwrap_or(Self { pid, start: 0 })
    }

    /// What /proc says of it, unless it has ended. A zombie has ended.
    pub(crate) fn stat(self) -> Option<Stat> {
        Stat::read(self.pid)
            .filter(|stat| stat.start == self.start && !matches!(stat.state, 'Z' | 'X'))
    }

    /// It has not ended.
    pub(crate) fn is_alive(self) -> bool {
        self.stat().is_some()
    }

    /// It is stopped by a job-control signal.
    pub(crate) fn is_stopped(self) -> bool {
        self.stat().is_some_and(|stat| stat.state == 'T')
    }
}

/// The parts of /proc/PID/stat that are needed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// R, S, D, T, t, Z or X.
    pub state: char,
    /// The parent.
    pub parent: u32,
    /// Clock ticks since boot.
    pub start: u64,
}

impl Stat {
    /// None when there is no such process.
    pub(crate) fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name may hold blanks and parentheses; nothing after it does.
        let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let start = fields.nth(17)?.parse().ok()?;
        Some(Self {
            state,
            parent,
            start,
        })
    }
}

/// `pid` is `ancestor` or descends from it.
pub(crate) fn descends_from(pid: u32, ancestor: u32) -> bool {
    let mut pid = pid;
    while pid > 1 && pid != ancestor {
        match Stat::read(pid) {
            Some(stat) => pid = stat.parent,
            None => return false,
        }
    }
    pid == ancestor
}

/// The name of a process's main thread.
pub(crate) fn name(pid: u32) -> Option<String> {
    Some(
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .ok()?
            .trim_end()
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_wicked_name() {
        let line = "4 (a) R (b) S 1 4 4 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987 1 1";
        assert_eq!(
            Stat::parse(line),
            Some(Stat {
                state: 'S',
                parent: 1,
                start: 987
            })
        );
        assert_eq!(Stat::parse("4 (a"), None);
    }

    #[test]
    fn another_start_time_is_another_process() {
        let own = ProcessId::own();
        assert!(own.is_alive());
        assert!(
            !ProcessId {
                start: own.start + 1,
                ..own
            }
            .is_alive()
        );
    }

    #[test]
    fn a_child_descends_from_us() {
        let mut child = std::process::Command::new("sleep")
            .arg("9")
            .spawn()
            .unwrap();
        assert!(descends_from(child.id(), std::process::id()));
        assert!(!descends_from(std::process::id(), child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
