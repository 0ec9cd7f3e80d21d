//! How memory can be read and its changes found.

use super::rights::{Capability, Rights};
use super::system::kernel_at_least;
use super::{Fact, State, number, read};
use std::io::IoSliceMut;
use std::path::Path;

/// What works.
pub(crate) fn facts(rights: &Rights) -> Vec<Fact> {
    vec![
        read_memory(),
        userfaultfd(rights),
        page_scan(),
        tracking(),
        huge_pages(),
        mappings(),
    ]
}

/// Reads its own memory as that of another process.
fn read_memory() -> Fact {
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    let (from, mut to) = (vec![7_u8; 64], vec![0_u8; 64]);
    let remote = [RemoteIoVec {
        base: from.as_ptr() as usize,
        len: from.len(),
    }];
    let read = process_vm_readv(
        nix::unistd::getpid(),
        &mut [IoSliceMut::new(&mut to)],
        &remote,
    );
    let (state, found) = match read {
        Ok(_) => (State::Good, "works".to_owned()),
        Err(errno) => (State::Missing, format!("process_vm_readv: {errno}")),
    };
    Fact::new("reading memory", state, found, "the memory of a job cannot be read")
        .advice("use a kernel with CONFIG_CROSS_MEMORY_ATTACH; in a container, allow the call in its seccomp profile")
}

fn userfaultfd(rights: &Rights) -> Fact {
    let unprivileged = number("/proc/sys/vm/unprivileged_userfaultfd");
    let device = nix::unistd::access("/dev/userfaultfd", nix::unistd::AccessFlags::R_OK).is_ok();
    let (state, found) = match unprivileged {
        None => (State::Limited, "this kernel has none"),
        Some(_) if rights.has(Capability::SysPtrace) => (State::Good, "allowed by CAP_SYS_PTRACE"),
        Some(1..) => (State::Good, "allowed to all users"),
        Some(_) if device => (State::Good, "allowed by /dev/userfaultfd"),
        Some(_) => (State::Limited, "not allowed to this user"),
    };
    Fact::new(
        "userfaultfd",
        state,
        found,
        "this version does without it; incremental checkpoints and lazy restores will need it",
    )
    .advice("sudo sysctl vm.unprivileged_userfaultfd=1, or a kernel with CONFIG_USERFAULTFD")
}

fn page_scan() -> Fact {
    let there = kernel_at_least(6, 7);
    let (state, found) = if there {
        (State::Good, "this kernel has PAGEMAP_SCAN")
    } else {
        (State::Limited, "this kernel is older than 6.7")
    };
    Fact::new(
        "page scan",
        state,
        found,
        "finding a job's pages takes longer",
    )
    .advice("use Linux 6.7 or newer")
}

/// How written pages are found.
fn tracking() -> Fact {
    let fact = |state, found| {
        Fact::new(
            "write tracking",
            state,
            found,
            "incremental checkpoints copy what was written since the last one",
        )
    };
    let other = match memory::tracking() {
        memory::Tracking::WriteProtect => {
            let holes = match memory::reports_holes() {
                Some(false) => "; memory given back is looked for, which it does not show",
                _ => "",
            };
            let found = format!("by write protection, while the job runs{holes}");
            return fact(State::Good, found);
        }
        memory::Tracking::SoftDirty { why } => {
            format!("by soft-dirty pages, the job stopping twice a checkpoint: {why}")
        }
        memory::Tracking::None { why } => format!("none, checkpoints are whole: {why}"),
    };
    fact(State::Limited, other).advice("use Linux 6.7 or newer, as root")
}

fn huge_pages() -> Fact {
    let mode = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let chosen = mode
        .as_deref()
        .and_then(|line| line.split(['[', ']']).nth(1));
    let found = chosen.map_or_else(
        || "this kernel has none".to_owned(),
        |mode| format!("transparent huge pages: {mode}"),
    );
    Fact::new(
        "huge pages",
        State::Good,
        found,
        "large jobs run faster where this is always or madvise",
    )
}

fn mappings() -> Fact {
    let most = number("/proc/sys/vm/max_map_count").unwrap_or(65_530);
    let state = if most < 65_530 || !Path::new("/proc/self/map_files").exists() {
        State::Limited
    } else {
        State::Good
    };
    Fact::new(
        "mappings",
        state,
        format!("a process may have {most}"),
        "a process that had more where it was saved cannot be restored here",
    )
    .advice("sudo sysctl vm.max_map_count=262144")
}
