//! What this user may do.

use super::{Fact, State, number, read};
use nix::unistd::Uid;

/// Capabilities, by their numbers in linux/capability.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capability {
    /// Set other user ids.
    SetUid = 7,
    /// Look into and change any process.
    SysPtrace = 19,
    /// Nearly everything.
    SysAdmin = 21,
    /// Better priorities.
    SysNice = 23,
    /// Higher limits.
    SysResource = 24,
    /// What checkpoint and restore need, and no more (Linux 5.9).
    CheckpointRestore = 40,
}

/// Who we are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rights {
    uid: Uid,
    /// Effective capabilities; bit n is capability n.
    effective: u64,
}

impl Rights {
    /// Those of this process.
    pub(crate) fn of_self() -> Self {
        let status = read("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let effective = line
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0);
        Self {
            uid: Uid::effective(),
            effective,
        }
    }

    /// Whether this capability is in effect.
    pub(crate) fn has(&self, capability: Capability) -> bool {
        self.effective >> (capability as u32) & 1 == 1
    }
}

fn grant(capability: &str) -> String {
    let program =
        std::env::current_exe().map_or_else(|_| "ckptd".into(), |path| path.display().to_string());
    format!("run ckptd as root, or once: sudo setcap {capability}+ep {program}")
}

/// What they allow.
pub(crate) fn facts(rights: &Rights) -> Vec<Fact> {
    use Capability as C;
    let user = if rights.uid.is_root() {
        "root".to_owned()
    } else {
        format!("uid {}", rights.uid)
    };
    let held = |capability, name: &str| {
        if rights.has(capability) {
            format!("{name} is there ({user})")
        } else {
            format!("{name} is missing ({user})")
        }
    };
    vec![
        ptrace(rights, &user),
        Fact::new(
            "pids as they were",
            if rights.has(C::CheckpointRestore) || rights.has(C::SysAdmin) { State::Good } else { State::Missing },
            if rights.has(C::CheckpointRestore) {
                held(C::CheckpointRestore, "CAP_CHECKPOINT_RESTORE")
            } else if rights.has(C::SysAdmin) {
                held(C::SysAdmin, "CAP_SYS_ADMIN")
            } else {
                held(C::CheckpointRestore, "CAP_CHECKPOINT_RESTORE")
            },
            "a restored process gets its own pid and its own program file back only with this capability",
        )
        .advice(grant("cap_checkpoint_restore,cap_sys_ptrace")),
        namespaces(rights),
        Fact::new(
            "other users' jobs",
            if rights.has(C::SysPtrace) && rights.has(C::SetUid) { State::Good } else { State::Limited },
            if rights.has(C::SysPtrace) && rights.has(C::SetUid) {
                format!("allowed ({user})")
            } else {
                format!("not allowed ({user})")
            },
            "only your own jobs can be saved and restored",
        )
        .advice("run ckptd as root for jobs that hold processes of several users"),
        Fact::new(
            "hard limits",
            if rights.has(C::SysResource) { State::Good } else { State::Limited },
            held(C::SysResource, "CAP_SYS_RESOURCE"),
            "a job whose hard limits (ulimit -H) are above those of ckptd cannot get them back",
        )
        .advice("raise them where ckptd is started (ulimit, LimitNOFILE=, limits.conf), or run it with CAP_SYS_RESOURCE"),
        Fact::new(
            "priorities",
            if rights.has(C::SysNice) { State::Good } else { State::Limited },
            held(C::SysNice, "CAP_SYS_NICE"),
            "a job with a raised priority or a real-time scheduler cannot get it back",
        )
        .advice(grant("cap_sys_nice,cap_checkpoint_restore,cap_sys_ptrace")),
    ]
}

fn ptrace(rights: &Rights, user: &str) -> Fact {
    let scope = number("/proc/sys/kernel/yama/ptrace_scope").unwrap_or(0);
    let capable = rights.has(Capability::SysPtrace);
    let state = match (scope, capable) {
        (3.., _) | (2, false) => State::Missing,
        (1, false) => State::Limited,
        _ => State::Good,
    };
    let with = if capable { "with" } else { "without" };
    Fact::new(
        "ptrace",
        state,
        format!("kernel.yama.ptrace_scope is {scope}, {with} CAP_SYS_PTRACE ({user})"),
        match state {
            State::Missing => "no process can be stopped and read, so nothing can be saved",
            State::Limited => "only jobs under `ckptd run` can be saved, not others by --pid",
            State::Good => "processes can be stopped and read",
        },
    )
    .advice(if scope >= 3 {
        "ptrace is switched off until the next boot; look for kernel.yama.ptrace_scope in /etc/sysctl.d".to_owned()
    } else {
        format!("{}; or: sudo sysctl kernel.yama.ptrace_scope=0", grant("cap_sys_ptrace,cap_checkpoint_restore"))
    })
}

fn namespaces(rights: &Rights) -> Fact {
    let there = std::path::Path::new("/proc/self/ns/pid_for_children").exists();
    let admin = rights.has(Capability::SysAdmin);
    let (state, found) = match (there, admin) {
        (false, _) => (State::Limited, "this kernel has no pid namespaces"),
        (true, false) => (State::Limited, "CAP_SYS_ADMIN is missing"),
        (true, true) => (State::Good, "pid namespaces can be made"),
    };
    Fact::new(
        "taken pids",
        state,
        found,
        "a job cannot be restored while another process has one of its pids",
    )
    .advice("run ckptd as root; or restore again once those pids are free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_lacks_nothing_and_nobody_lacks_pids() {
        let root = Rights {
            uid: Uid::from_raw(0),
            effective: u64::MAX,
        };
        assert!(
            facts(&root)
                .iter()
                .all(|fact| fact.state != State::Missing || fact.name == "ptrace")
        );
        let nobody = Rights {
            uid: Uid::from_raw(65534),
            effective: 0,
        };
        let pids = facts(&nobody)
            .into_iter()
            .find(|fact| fact.name == "pids as they were")
            .unwrap();
        assert_eq!(pids.state, State::Missing);
        assert!(pids.advice.unwrap().contains("cap_checkpoint_restore"));
    }

    #[test]
    fn capabilities_are_read_by_number() {
        let rights = Rights {
            uid: Uid::from_raw(1),
            effective: 1 << 40,
        };
        assert!(rights.has(Capability::CheckpointRestore) && !rights.has(Capability::SysAdmin));
    }
}
