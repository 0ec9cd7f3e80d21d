//! Who is who in the job, and what no job may be.

use std::collections::HashMap;

use images::proto::Process;
use remote::sys;

use super::gather::Namespaces;
use crate::procfs::{Stat, Status};
use crate::{Refusal, namespaces};

/// Ids outside and inside the job's pid namespace.
pub(super) struct Ids {
    pub(super) inner: HashMap<u32, u32>,
    pub(super) outer_session: u32,
    pub(super) outer_group: u32,
}

/// Why a process apart from the rest is refused, and what to do.
const APART: (&str, &str) = (
    "it is in other namespaces than the rest of the job",
    "start it without unshare or a sandbox",
);

/// Everything that can be told from outside to be impossible.
pub(crate) fn check(
    order: &[u32],
    statuses: &HashMap<u32, Status>,
    root: u32,
    namespaces_of: &dyn Fn(u32) -> Option<Namespaces>,
    refusals: &mut Vec<Refusal>,
) {
    let mut refuse = |pid: u32, what: &str, why: &str, advice: &str| {
        refusals.push(Refusal {
            pid,
            what: what.to_owned(),
            why: why.to_owned(),
            advice: advice.to_owned(),
        });
    };
    let of_root = statuses.get(&root).map_or(root, Status::speaker);
    if let Some(mount) = namespaces::own_mount(of_root) {
        refuse(
            root,
            &format!("its mount at {mount}"),
            "the job has mounts of its own, which are not supported",
            "start it without a mount namespace, or run ckptd inside it",
        );
    }
    let ours = super::namespaces_of(std::process::id());
    let theirs = namespaces_of(root).unwrap_or_default();
    let ended = statuses
        .get(&root)
        .is_some_and(|status| status.state() == 'Z' && root == of_root);
    if !ended && std::iter::once(7).any(|nth| ours[nth] != theirs[nth]) {
        let advice = "run ckptd inside the container";
        refuse(
            root,
            "its namespaces",
            "the job is in another cgroup namespace (a container's) than ckptd",
            advice,
        );
    }
    for pid in order {
        let Some(status) = statuses.get(pid) else {
            continue;
        };
        if status.state() == 'Z' {
            let other = status.speaker();
            if other == *pid {
                continue;
            }
            if namespaces_of(*pid).is_some_and(|own| own != theirs) {
                refuse(*pid, "its namespaces", APART.0, APART.1);
            }
            if sys::pidfd_open(other as i32).is_err() {
                refuse(
                    *pid,
                    "its leader thread",
                    "it has ended while other threads run on, and this kernel shows the descriptors of a process through its leader only",
                    "let the main thread wait for the others, or use Linux 6.9",
                );
            }
            continue;
        }
        // arch/x86/kernel/cpu/proc.c
        if status.text("x86_Thread_features").contains("shstk") {
            refuse(
                *pid,
                "its shadow stack",
                "shadow stacks are not supported",
                "start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
            );
        }
        let born_elsewhere =
            |own: Namespaces| own[5].is_some() && (own[8] != own[5] || own[9] != own[6]);
        if namespaces_of(*pid).is_some_and(born_elsewhere) {
            refuse(
                *pid,
                "its namespaces",
                "its children will be in another pid or time namespace than itself (unshare(2))",
                "start it without unshare or a sandbox",
            );
        }
        if *pid != root && namespaces_of(*pid).is_some_and(|own| own != theirs) {
            refuse(*pid, "its namespaces", APART.0, APART.1);
        }
        let parent = status.number("PPid");
        for (share, what) in [
            (sys::Share::Memory, "memory"),
            (sys::Share::Descriptors, "descriptor table"),
        ] {
            let same = statuses.contains_key(&parent)
                && sys::compare(*pid as i32, parent as i32, share, 0, 0)
                    .is_ok_and(|order| order == std::cmp::Ordering::Equal);
            if same {
                refuse(
                    *pid,
                    &format!("its {what}"),
                    &format!("it shares its {what} with its parent {parent} (clone(2))"),
                    "use threads, or fork",
                );
            }
        }
    }
}

pub(super) fn ids(statuses: &HashMap<u32, Status>, root: u32) -> Ids {
    let inner = statuses
        .iter()
        .map(|(&pid, status)| (pid, status.inner("NSpid")))
        .collect();
    let of = |name: &str| statuses.get(&root).map_or(0, |status| status.inner(name));
    let pid = of("NSpid");
    // What the root has from those who started it is outside of the job.
    let outside = |name: &str| if of(name) == pid { u32::MAX } else { of(name) };
    Ids {
        inner,
        outer_session: outside("NSsid"),
        outer_group: outside("NSpgid"),
    }
}

/// Who and whose child a process is.
pub(super) fn relations(
    status: &Status,
    stat: &Stat,
    ids: &Ids,
    statuses: &HashMap<u32, Status>,
) -> Process {
    let parent = status.number("PPid");
    let sid = status.inner("NSsid");
    let pgid = status.inner("NSpgid");
    Process {
        pid: status.inner("NSpid"),
        ppid: if statuses.contains_key(&parent) {
            ids.inner.get(&parent).copied().unwrap_or(0)
        } else {
            0
        },
        sid: if sid == ids.outer_session { 0 } else { sid },
        pgid: if pgid == ids.outer_group { 0 } else { pgid },
        exit_signal: stat.field(38) as u32,
        shares_fs: statuses.contains_key(&parent)
            && sys::compare(
                status.number("Pid") as i32,
                parent as i32,
                sys::Share::Fs,
                0,
                0,
            )
            .is_ok_and(|order| order == std::cmp::Ordering::Equal),
        ..Default::default()
    }
}
