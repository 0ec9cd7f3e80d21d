//! The records of `ebpf/threads.bpf.c`.

use crate::Error;
use crate::iterator::Reader;

/// What the kernel knows of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Its id in the first pid namespace.
    pub tid: u32,
    /// Its id in its own pid namespace.
    pub inner_tid: u32,
    /// Where its alternate signal stack begins.
    pub altstack: u64,
    /// Bytes of its alternate signal stack; 0 without one.
    pub altstack_size: u64,
    /// `SS_AUTODISARM`, or what else was given to sigaltstack(2).
    pub altstack_flags: u32,
    /// Where the kernel writes a zero when it ends (`set_tid_address(2)`).
    pub clear_child_tid: u64,
    /// Nanoseconds.
    pub timer_slack: u64,
    /// How the kernel would continue a wait it was interrupted in. Says nothing of a thread that was not.
    pub wait: Wait,
    /// personality(2)
    pub personality: u32,
    /// The signal it gets when its parent ends; 0 for none.
    pub death_signal: u32,
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub capabilities: [u64; 5],
    /// Its securebits (capabilities(7)).
    pub securebits: u32,
    /// Real, effective, saved and file-system user id, then the same of the group.
    pub ids: [u32; 8],
    /// Its further groups; `None` where they are too many for a record.
    pub groups: Option<Vec<u32>>,
    /// `PR_SET_NO_NEW_PRIVS`
    pub no_new_privs: bool,
    /// umask(2)
    pub umask: u32,
    /// Whether it shares root, working directory and umask with its leader.
    pub shares_fs: bool,
    /// Its name, any bytes.
    pub name: Vec<u8>,
    /// Whether it may have what only itself can be asked about.
    pub special: bool,
    /// Its mode of seccomp(2).
    pub seccomp: u32,
    /// What security modules keep with its credentials.
    pub(crate) security: [u64; SECURITY],
    /// Which session keyring it has; 0 when nothing is in that.
    pub(crate) session: u64,
    /// Whether there may be keys that it has to itself: its own, its process's or its session's (keyrings(7)).
    pub keys: bool,
    /// Whether it is confined by Landlock (landlock(7)).
    pub confined: bool,
    /// What its process has as a whole, of a leader that runs.
    pub process: Option<Process>,
}

/// A thread's `struct restart_block`, of which one of the ends is to the point. Times are in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// The kernel function that goes on.
    pub function: u64,
    /// Of futex(2), by CLOCK_MONOTONIC.
    pub futex_end: u64,
    /// Of nanosleep(2) and clock_nanosleep(2), by `sleep_clock`.
    pub sleep_end: u64,
    /// A clock that was asked for.
    pub sleep_clock: u32,
    /// Of poll(2), by CLOCK_MONOTONIC; 0: not to be had.
    pub poll_end: u64,
}

/// What the threads of a process have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The end of the heap that brk(2) moves.
    pub brk: u64,
    /// Whether it may be dumped: as prctl(2), `PR_GET_DUMPABLE`.
    pub dumpable: u32,
    /// Whether it adopts orphans among its descendants.
    pub subreaper: bool,
    /// Whether it may have interval timers or POSIX timers.
    pub timers: bool,
    /// The same as long as none of its mappings is made, changed or removed; `None` where the kernel does not count that.
    pub map_generation: Option<MapGeneration>,
    /// Whether [`Wait::poll_end`] of its threads can be told on this kernel.
    pub tells_poll: bool,
    /// Whether it may have what only itself can be asked about.
    pub special: bool,
    /// What it has registered for: `MEMBARRIER_CMD_REGISTER_*` of membarrier(2), or'ed.
    pub barriers: u32,
    /// Of each signal for which it is not the default.
    pub actions: Vec<Action>,
}

/// A state of a process's mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapGeneration {
    born: u64,
    changes: u64,
}

/// What happens at a signal, as in `rt_sigaction(2)`, but with flags of the kernel's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// Its number.
    pub signal: u32,
    /// An address, or `SIG_IGN`.
    pub handler: u64,
    /// `SA_*`
    pub flags: u64,
    /// Where a handler returns to.
    pub restorer: u64,
    /// Signals that are blocked meanwhile.
    pub mask: u64,
}

// As in ebpf/records.h.
const GROUPS_MAX: u32 = 32;
const SIGNALS: u32 = 64;
const NAME_SIZE: usize = 16;
pub(crate) const SECURITY: usize = 8;
/// The low bits of a memory's flags (linux/sched/coredump.h, `MMF_DUMPABLE_MASK`).
const DUMPABLE: u64 = 3;

pub(crate) fn parse(records: &[u8]) -> Result<Vec<Thread>, Error> {
    let mut reader = Reader::new(records);
    let mut all = Vec::new();
    while !reader.is_empty() {
        all.push(one(&mut reader).ok_or(Error::Record { name: "threads" })?);
    }
    Ok(all)
}

/// `struct thread` of ebpf/records.h.
fn one(reader: &mut Reader<'_>) -> Option<Thread> {
    let (altstack, altstack_size) = (reader.u64()?, reader.u64()?);
    let (clear_child_tid, timer_slack) = (reader.u64()?, reader.u64()?);
    let (function, futex_end) = (reader.u64()?, reader.u64()?);
    let (sleep_end, poll_end) = (reader.u64()?, reader.u64()?);
    let mut capabilities = [0; 5];
    for set in &mut capabilities {
        *set = reader.u64()?;
    }
    let (tid, inner_tid) = (reader.u32()?, reader.u32()?);
    let (altstack_flags, personality) = (reader.u32()?, reader.u32()?);
    let (death_signal, securebits) = (reader.u32()?, reader.u32()?);
    let mut ids = [0; 8];
    for id in &mut ids {
        *id = reader.u32()?;
    }
    let (no_new_privs, umask) = (reader.u32()? != 0, reader.u32()?);
    let (shares_fs, group_count) = (reader.u32()? != 0, reader.u32()?);
    let name = reader.bytes(NAME_SIZE)?;
    let (leads, sleep_clock) = (reader.u32()? != 0, reader.u32()?);
    let (special, seccomp) = (reader.u32()? != 0, reader.u32()?);
    let mut security = [0; SECURITY];
    for word in &mut security {
        *word = reader.u64()?;
    }
    let session = reader.u64()?;
    let (keys, _padding) = (reader.u32()? != 0, reader.u32()?);
    let listed: Option<Vec<u32>> = (0..group_count.min(GROUPS_MAX))
        .map(|_| reader.u32())
        .collect();
    let process = if leads { Some(process(reader)?) } else { None };
    Some(Thread {
        tid,
        inner_tid,
        altstack,
        altstack_size,
        altstack_flags,
        clear_child_tid,
        timer_slack,
        wait: Wait {
            function,
            futex_end,
            sleep_end,
            sleep_clock,
            poll_end,
        },
        personality,
        death_signal,
        capabilities,
        securebits,
        ids,
        groups: Some(listed?).filter(|_| group_count <= GROUPS_MAX),
        no_new_privs,
        umask,
        shares_fs,
        name: name
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default()
            .to_vec(),
        special,
        seccomp,
        security,
        session,
        keys,
        confined: false,
        process,
    })
}

/// `struct process`, and behind it each `struct action`.
fn process(reader: &mut Reader<'_>) -> Option<Process> {
    let (brk, mm_flags) = (reader.u64()?, reader.u64()?);
    let (subreaper, timers) = (reader.u32()? != 0, reader.u32()? != 0);
    let (born, changes) = (reader.u64()?, reader.u64()?);
    let (tells_poll, _padding) = (reader.u32()? != 0, reader.u32()?);
    let (special, barriers) = (reader.u32()? != 0, reader.u32()?);
    let mut actions = Vec::new();
    for signal in 1..=SIGNALS {
        let (handler, flags) = (reader.u64()?, reader.u64()?);
        let (restorer, mask) = (reader.u64()?, reader.u64()?);
        if (handler, flags, restorer, mask) != (0, 0, 0, 0) {
            actions.push(Action {
                signal,
                handler,
                flags,
                restorer,
                mask,
            });
        }
    }
    Some(Process {
        brk,
        dumpable: (mm_flags & DUMPABLE) as u32,
        subreaper,
        timers,
        map_generation: (changes != 0).then_some(MapGeneration { born, changes }),
        tells_poll,
        special,
        barriers: registrations(barriers),
        actions,
    })
}

/// Two bits of `mm->membarrier_state` for each registration: that it is made, and that it is in force.
fn registrations(state: u32) -> u32 {
    let commands = [
        (3, 1 << 4),
        (3 << 2, 1 << 2),
        (3 << 4, 1 << 6),
        (3 << 6, 1 << 8),
    ];
    let made = commands.iter().filter(|(bits, _)| state & bits != 0);
    made.fold(0, |all, (_, command)| all | command)
}
