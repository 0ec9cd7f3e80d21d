//! The kernel, and what surrounds the job.

use super::{Fact, State, number, read};
use crate::registry::Registry;
use std::path::Path;
use tracker::{Picture, Tracker};

/// Whether the running kernel's release is at least `major.minor`.
pub(crate) fn kernel_at_least(major: u32, minor: u32) -> bool {
    release_at_least(&release(), major, minor)
}

fn release() -> String {
    read("/proc/sys/kernel/osrelease").unwrap_or_default()
}

fn release_at_least(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// What nothing works without.
pub(crate) fn base() -> Vec<Fact> {
    let arch = std::env::consts::ARCH;
    let (state, meaning) = match (arch, kernel_at_least(5, 11), kernel_at_least(6, 7)) {
        ("x86_64", _, true) => (State::Good, "everything that ckptd does is there"),
        ("x86_64", true, false) => (State::Limited, "it works, but finds memory in slower ways"),
        _ => (State::Missing, "ckptd needs Linux 5.11 or newer on x86_64"),
    };
    let kernel = Fact::new(
        "kernel",
        state,
        format!("Linux {} on {arch}", release()),
        meaning,
    )
    .advice("use Linux 6.7 or newer on x86_64");

    // It exists exactly with CONFIG_CHECKPOINT_RESTORE.
    let built = Path::new("/proc/sys/kernel/ns_last_pid").exists();
    let (state, found) = if built {
        (State::Good, "built in")
    } else {
        (State::Missing, "not built in")
    };
    let support = Fact::new(
        "restore support",
        state,
        found,
        "processes cannot be rebuilt as they were",
    )
    .advice("use a kernel with CONFIG_CHECKPOINT_RESTORE (all large distributions have it)");
    vec![kernel, support, seccomp()]
}

fn seccomp() -> Fact {
    let status = read("/proc/self/status").unwrap_or_default();
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"))
        .map_or("0", str::trim)
        .to_owned();
    let (state, found) = match mode.as_str() {
        "0" => (State::Good, "no system call is forbidden"),
        _ => (
            State::Limited,
            "a seccomp filter is in force, as in most containers",
        ),
    };
    Fact::new("system calls", state, found, "some calls that ckptd needs may be forbidden")
        .advice("in a container: --security-opt seccomp=unconfined --cap-add SYS_PTRACE --cap-add CHECKPOINT_RESTORE")
}

/// What is good to have.
pub(crate) fn surroundings() -> Vec<Fact> {
    vec![run_directory(), pids(), freezer(), bpf(), following()]
}

fn run_directory() -> Fact {
    let (state, found, advice) = match Registry::open() {
        Ok(registry) => (
            State::Good,
            registry.dir().display().to_string(),
            String::new(),
        ),
        Err(failure) => (
            State::Missing,
            failure.message,
            failure.help.unwrap_or_default(),
        ),
    };
    Fact::new(
        "run directory",
        state,
        found,
        "`ckptd run` and `ckptd restore` note their jobs there",
    )
    .advice(advice)
}

fn pids() -> Fact {
    let most = number("/proc/sys/kernel/pid_max").unwrap_or(0);
    let found = format!("up to {most}");
    Fact::new(
        "pid numbers",
        State::Good,
        found,
        "the fewer there are, the sooner a job's pids are taken by others",
    )
}

fn freezer() -> Fact {
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let unified = own.lines().find_map(|line| line.strip_prefix("0::"));
    let v2 = unified
        .is_some_and(|path| Path::new(&format!("/sys/fs/cgroup{path}/cgroup.procs")).exists());
    let v1 = own.lines().any(|line| {
        line.split(':')
            .nth(1)
            .is_some_and(|names| names.split(',').any(|n| n == "freezer"))
    });
    let found = match (v2, v1) {
        (true, _) => "cgroup v2",
        (false, true) => "cgroup v1: a frozen group must be thawed before its jobs are saved",
        (false, false) => "no cgroups",
    };
    Fact::new(
        "freezer",
        State::Good,
        found,
        "jobs are stopped by ptrace; a freezer is not needed",
    )
}

/// What tells of changes within a job while it runs.
fn following() -> Fact {
    let name = "following a job";
    match Picture::begin(1, false) {
        Ok(picture) => Fact::new(
            name,
            State::Good,
            format!("fork, exec and exit; {}", picture.hooks()),
            "a job's processes are known as they come and go",
        ),
        Err(error) => Fact::new(
            name,
            State::Limited,
            error.to_string(),
            "a job's processes are looked for in /proc",
        )
        .advice("as for eBPF"),
    }
}

fn bpf() -> Fact {
    let (state, found) = match Tracker::load() {
        Ok(_) => (State::Good, "programs load".to_owned()),
        Err(error) => (State::Limited, error.to_string()),
    };
    Fact::new(
        "eBPF",
        state,
        found,
        "reads the state of stopped jobs in bulk; without it, from /proc, jobs with many mappings stand still for longer",
    )
    .advice("use Linux 6.1 or newer with CONFIG_DEBUG_INFO_BTF, and run ckptd as root or with CAP_BPF and CAP_PERFMON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_by_number() {
        assert!(release_at_least("6.18.44-fc-v595", 6, 7));
        assert!(release_at_least("7.0.0", 6, 7));
        assert!(!release_at_least("6.6.12-generic", 6, 7));
        assert!(!release_at_least("5.4", 5, 11));
    }
}
