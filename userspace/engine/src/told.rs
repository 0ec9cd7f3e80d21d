//! What the threads of a process would say if they were asked: told by an eBPF iterator, so that no code runs in the process.

use std::collections::HashMap;

use images::proto::{
    Attribute, Credentials, IntervalTimer, Place, PosixTimer, SigAltStack, SignalAction,
};
use tracker::{Tracker, Wait};

use crate::capture::place;
use crate::freeze;
use crate::procfs::Status;
use crate::{CheckpointError, attributes, signals};

/// What a thread says of itself.
pub(crate) struct Told {
    /// Its id in its own pid namespace.
    pub(crate) inner: u32,
    pub(crate) name: Vec<u8>,
    pub(crate) personality: u64,
    pub(crate) altstack: Option<SigAltStack>,
    pub(crate) clear_child_tid: u64,
    pub(crate) death_signal: u32,
    /// Nanoseconds.
    pub(crate) timer_slack: u64,
    pub(crate) credentials: Credentials,
    pub(crate) place: Option<Place>,
    /// Mode of seccomp(2).
    pub(crate) seccomp: u32,
    pub(crate) attributes: Vec<Attribute>,
    /// Whose keyring it is that has keys of its own.
    pub(crate) keys: Option<&'static str>,
    /// Of the leader.
    pub(crate) process: Option<ToldOfProcess>,
}

/// What the leader says of its process.
pub(crate) struct ToldOfProcess {
    pub(crate) actions: Vec<SignalAction>,
    pub(crate) interval_timers: Vec<IntervalTimer>,
    pub(crate) posix_timers: Vec<PosixTimer>,
    pub(crate) brk: u64,
    pub(crate) child_subreaper: bool,
    pub(crate) dumpable: u32,
    pub(crate) thp_disabled: u32,
    pub(crate) attributes: Vec<Attribute>,
}

/// What there is to tell of a stopped process's threads; nothing where they have to be asked.
pub(crate) fn threads(pid: u32, tracker: Option<&Tracker>) -> Vec<tracker::Thread> {
    let threads = tracker.map(|tracker| tracker.threads(pid));
    threads
        .transpose()
        .inspect_err(|error| tracing::warn!("{error}; asking the process instead"))
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// How the kernel would continue the waits of threads, by their ids.
pub(crate) fn waits(threads: &[tracker::Thread]) -> HashMap<u32, Wait> {
    let wait = |thread: &tracker::Thread| (thread.tid, thread.wait);
    threads.iter().map(wait).collect()
}

/// All threads of a stopped process, by their ids. `None`: they have to be asked.
pub(crate) fn in_bulk(
    process: &freeze::Process,
    status: &Status,
    threads: Vec<tracker::Thread>,
) -> Result<Option<Vec<(u32, Told)>>, CheckpointError> {
    // In another pid namespace than the first one we know them by other ids.
    let same = threads.len() == process.threads.len()
        && threads
            .iter()
            .all(|thread| process.threads.contains_key(&thread.tid));
    if !same {
        return Ok(None);
    }
    let mut all = Vec::with_capacity(threads.len());
    for thread in threads {
        let tid = thread.tid;
        match one(process.pid, status, thread)? {
            Some(told) => all.push((tid, told)),
            None => return Ok(None),
        }
    }
    Ok(Some(all))
}

fn one(
    pid: u32,
    status: &Status,
    thread: tracker::Thread,
) -> Result<Option<Told>, CheckpointError> {
    // Timers go on; only who has them knows how much time they have left.
    let asked = |process: &tracker::Process| process.timers || process.special;
    let asked = thread.special || thread.keys || thread.process.as_ref().is_some_and(asked);
    let leads = thread.tid == pid;
    let Some(groups) = thread
        .groups
        .filter(|_| !asked && thread.process.is_some() == leads)
    else {
        return Ok(None);
    };
    let [ruid, euid, suid, fsuid, rgid, egid, sgid, fsgid] = thread.ids;
    let [inheritable, permitted, effective, bounding, ambient] = thread.capabilities;
    Ok(Some(Told {
        inner: thread.inner_tid,
        name: thread.name,
        personality: u64::from(thread.personality),
        altstack: (thread.altstack_size != 0).then_some(SigAltStack {
            base: thread.altstack,
            size: thread.altstack_size,
            flags: thread.altstack_flags & signals::SS_AUTODISARM,
        }),
        clear_child_tid: thread.clear_child_tid,
        death_signal: thread.death_signal,
        timer_slack: thread.timer_slack,
        credentials: Credentials {
            ruid,
            euid,
            suid,
            fsuid,
            rgid,
            egid,
            sgid,
            fsgid,
            groups,
            inheritable,
            permitted,
            effective,
            bounding,
            ambient,
            securebits: thread.securebits,
            no_new_privs: thread.no_new_privs,
        },
        place: if thread.shares_fs {
            None
        } else {
            Some(place(pid, thread.tid, thread.umask)?)
        },
        seccomp: thread.seccomp,
        attributes: Vec::new(),
        keys: None,
        process: thread.process.map(|process| of_process(process, status)),
    }))
}

fn of_process(process: tracker::Process, status: &Status) -> ToldOfProcess {
    let action = |action: tracker::Action| {
        let flags = action.flags & signals::USER_FLAGS;
        let set = (action.handler, flags, action.restorer, action.mask) != (0, 0, 0, 0);
        set.then_some(SignalAction {
            signal: action.signal,
            handler: action.handler,
            flags,
            restorer: action.restorer,
            mask: action.mask,
        })
    };
    ToldOfProcess {
        actions: process.actions.into_iter().filter_map(action).collect(),
        interval_timers: Vec::new(),
        posix_timers: Vec::new(),
        brk: process.brk,
        child_subreaper: process.subreaper,
        dumpable: process.dumpable,
        // A kernel without huge pages says so of every process.
        thp_disabled: u32::from(
            status.text("THP_enabled") == "0"
                && std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists(),
        ),
        attributes: Vec::from_iter(attributes::barriers(process.barriers)),
    }
}
