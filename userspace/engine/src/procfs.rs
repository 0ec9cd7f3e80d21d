//! What /proc says of a task (proc(5)).

use std::io;

use remote::sys;

/// The fields of `/proc/TID/status`, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status(String);

impl Status {
    pub(crate) fn read(tid: u32) -> io::Result<Self> {
        Ok(Self(sys::read_text(format!("/proc/{tid}/status"))?))
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        let value = |line: &'_ str| -> Option<usize> {
            let rest = line.strip_prefix(name)?.strip_prefix(':')?;
            Some(line.len() - rest.len())
        };
        let found = (self.0.lines()).find_map(|line| Some(line.get(value(line)?..)?.trim()));
        found.unwrap_or_default()
    }

    pub(crate) fn numbers(&self, name: &str) -> Vec<u32> {
        self.text(name)
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect()
    }

    /// The first number of a field; 0 where it is missing.
    pub(crate) fn number(&self, name: &str) -> u32 {
        self.text(name)
            .split_whitespace()
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0)
    }

    pub(crate) fn hex(&self, name: &str) -> u64 {
        u64::from_str_radix(self.text(name), 16).unwrap_or(0)
    }

    pub(crate) fn octal(&self, name: &str) -> u32 {
        u32::from_str_radix(self.text(name), 8).unwrap_or(0)
    }

    /// An id as seen in the task's innermost pid namespace (`NSpid`, `NSpgid`, ...).
    pub(crate) fn inner(&self, name: &str) -> u32 {
        self.numbers(name).last().copied().unwrap_or(0)
    }

    /// One letter: R, S, D, T, t, Z, X.
    pub(crate) fn state(&self) -> char {
        self.text("State").chars().next().unwrap_or('?')
    }

    /// The thread through which a process of this leader is seen: the leader, or where it has ended the first of the others.
    pub(crate) fn speaker(&self) -> u32 {
        let pid = self.number("Pid");
        let ended = self.state() == 'Z';
        let others = ended.then(|| threads(pid)).into_iter().flatten();
        others.into_iter().find(|tid| *tid != pid).unwrap_or(pid)
    }
}

/// The fields of `/proc/PID/stat`, numbered as in proc(5) from 1, a letter as its code; those before the command are not kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stat(Vec<i64>);

impl Stat {
    pub(crate) fn read(pid: u32) -> io::Result<Self> {
        Ok(Self::parse(&sys::read_text(format!("/proc/{pid}/stat"))?))
    }

    fn parse(text: &str) -> Self {
        // The command may hold spaces and parentheses; what follows the last one does not.
        let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        // The fields are signed and unsigned longs; both fit an i64's 64 bits.
        let number = |n: &str| {
            n.parse::<i64>()
                .or_else(|_| n.parse::<u64>().map(|n| n as i64))
                .unwrap_or_else(|_| n.bytes().next().map_or(0, i64::from))
        };
        Self(rest.split_whitespace().map(number).collect())
    }

    /// Whether it has ended.
    pub(crate) fn is_zombie(&self) -> bool {
        self.field(3) == i64::from(b'Z')
    }

    pub(crate) fn field(&self, number: usize) -> i64 {
        self.0.get(number.wrapping_sub(3)).copied().unwrap_or(0)
    }
}

/// Threads of a process.
pub(crate) fn threads(pid: u32) -> Vec<u32> {
    numbered(&format!("/proc/{pid}/task"))
}

/// Children of a process, whichever thread made them.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let of =
        |tid: &u32| sys::read_text(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
    let lists: Vec<String> = threads(pid).iter().map(of).collect();
    lists
        .iter()
        .flat_map(|list| list.split_whitespace())
        .filter_map(|n| n.parse().ok())
        .collect()
}

/// The entries of a directory whose names are numbers, in order.
pub(crate) fn numbered(directory: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut all: Vec<u32> = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    all.sort_unstable();
    all
}

/// Pages of a process that are in memory; 0 of one that has ended.
pub(crate) fn resident(pid: u32) -> u64 {
    let statm = sys::read_text(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split(' ').nth(1);
    pages.and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

/// Pages of a process that are in memory and not of files or shared; 0 of one that has ended.
pub(crate) fn anonymous(pid: u32) -> u64 {
    let statm = sys::read_text(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: Vec<u64> = statm.split(' ').filter_map(|n| n.parse().ok()).collect();
    let (resident, shared) = (pages.get(1).copied(), pages.get(2).copied());
    resident.unwrap_or(0).saturating_sub(shared.unwrap_or(0))
}

/// A symbolic link of /proc as text.
pub(crate) fn link(path: &str) -> io::Result<String> {
    Ok(std::fs::read_link(path)?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_odd_commands() {
        let stat = Stat::parse("12 (a) b) (c) S 1 12 12 34816 12 4194304 17 18446744073709551615");
        assert_eq!((stat.field(4), stat.field(7)), (1, 34816));
        assert_eq!(stat.field(11), -1);
        assert_eq!(stat.field(60), 0);
    }

    #[test]
    fn status_fields() {
        let status = Status(
            "Name:\ta b\nState:\tT (stopped)\nUmask:\t0022\nSigCgt:\t0000000180000002\nNSpid:\t99\t7\n".to_owned(),
        );
        assert_eq!(
            (status.text("Name"), status.state(), status.octal("Umask")),
            ("a b", 'T', 0o22)
        );
        assert_eq!(
            (status.hex("SigCgt"), status.inner("NSpid")),
            (0x1_8000_0002, 7)
        );
    }
}
