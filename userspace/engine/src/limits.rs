//! Resource limits (prlimit(2)), oom_score_adj, what core dumps have.

use images::proto::{Process, Rlimit};
use remote::Program;

use crate::files::Shell;
use crate::host::Host;

/// /proc/PID/limits, in its order, with the numbers of RLIMIT_*.
const NAMES: [(&str, u32); 16] = [
    ("Max cpu time", libc::RLIMIT_CPU),
    ("Max file size", libc::RLIMIT_FSIZE),
    ("Max data size", libc::RLIMIT_DATA),
    ("Max stack size", libc::RLIMIT_STACK),
    ("Max core file size", libc::RLIMIT_CORE),
    ("Max resident set", libc::RLIMIT_RSS),
    ("Max processes", libc::RLIMIT_NPROC),
    ("Max open files", libc::RLIMIT_NOFILE),
    ("Max locked memory", libc::RLIMIT_MEMLOCK),
    ("Max address space", libc::RLIMIT_AS),
    ("Max file locks", libc::RLIMIT_LOCKS),
    ("Max pending signals", libc::RLIMIT_SIGPENDING),
    ("Max msgqueue size", libc::RLIMIT_MSGQUEUE),
    ("Max nice priority", libc::RLIMIT_NICE),
    ("Max realtime priority", libc::RLIMIT_RTPRIO),
    ("Max realtime timeout", libc::RLIMIT_RTTIME),
];

/// "00000033"
pub(crate) fn coredump_filter(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim(), 16).ok()
}

/// What a process writes to files of its own in /proc, where it differs from ours.
pub(crate) fn write_own(shell: &mut Shell, process: &Process, host: &Host) {
    let mut write = |file: &str, text: String| {
        let path = format!("/proc/self/{file}");
        let fd = shell.open_path(&path, libc::O_WRONLY as u32);
        let blob = shell.program.bytes(text.as_bytes());
        let args = [fd.into(), blob.into(), text.len().into()];
        let label = format!("set {file}");
        shell.program.must(libc::SYS_write, &args, label);
        shell.close(fd);
    };
    if process.oom_score_adj != host.oom_score_adj {
        write("oom_score_adj", process.oom_score_adj.to_string());
    }
    if let Some(filter) = process
        .coredump_filter
        .filter(|_| process.coredump_filter != host.coredump_filter)
    {
        write("coredump_filter", format!("{filter:#x}"));
    }
}

/// prlimit64 on another user's process needs CAP_SYS_RESOURCE; reading /proc does not.
pub(crate) fn parse(text: &str) -> Vec<Rlimit> {
    let number = |word: &str| {
        if word == "unlimited" {
            Some(u64::MAX)
        } else {
            word.parse().ok()
        }
    };
    let limit = |line: &str| {
        let &(name, resource) = NAMES.iter().find(|(name, _)| line.starts_with(name))?;
        let mut words = line[name.len()..].split_whitespace();
        Some(Rlimit {
            resource,
            soft: number(words.next()?)?,
            hard: number(words.next()?)?,
        })
    };
    text.lines().filter_map(limit).collect()
}

/// The name of a limit, for people.
pub(crate) fn name(resource: u32) -> &'static str {
    NAMES
        .iter()
        .find(|(_, number)| *number == resource)
        .map_or("unknown limit", |(name, _)| name)
}

/// Sets the limits that differ from `ours`.
pub(crate) fn set(program: &mut Program, wanted: &[Rlimit], ours: &[Rlimit]) {
    for limit in wanted.iter().filter(|limit| !ours.contains(limit)) {
        let new = program.words(&[limit.soft, limit.hard]);
        let args = [0.into(), limit.resource.into(), new.into(), 0.into()];
        program.must(
            libc::SYS_prlimit64,
            &args,
            format!("set {}", name(limit.resource)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_limits() {
        let limits = parse(
            "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 1048576              files     \nMax address space         unlimited            unlimited            bytes     \n",
        );
        assert_eq!(
            limits[0],
            Rlimit {
                resource: libc::RLIMIT_NOFILE,
                soft: 1024,
                hard: 1 << 20
            }
        );
        assert_eq!(limits[1].soft, u64::MAX);
    }
}
