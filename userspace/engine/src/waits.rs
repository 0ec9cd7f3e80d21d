//! System calls that wait with a relative timeout: how much of it is left, and waiting on for just that long.
//!
//! When such a call is interrupted, the kernel keeps its deadline to itself (`restart_block`) and continues it through restart_syscall(2). The
//! time left is told by nanosleep(2) where the caller asked for it; otherwise it follows from when the thread fell asleep, which the
//! scheduler's statistics show. A call that has been continued once already started its wait at that time as far as can be seen.

use std::collections::HashMap;

use images::proto::{Remaining, Thread};
use remote::live::State;
use remote::sys;
use remote::task::Registers;
use tracker::{Tracker, Wait};

use crate::procfs::Stat;

const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
/// futex(2) operations are in the low 7 bits; only FUTEX_WAIT (0) has a relative timeout.
const FUTEX_COMMAND: u64 = 0x7f;

/// Calls that the kernel continues by a restart block (kernel/time/hrtimer.c, fs/select.c, kernel/futex/waitwake.c).
const RESTARTABLE: [i64; 4] = [
    libc::SYS_poll,
    libc::SYS_nanosleep,
    libc::SYS_futex,
    libc::SYS_clock_nanosleep,
];

/// When a thread that waits in one of these calls fell asleep, by CLOCK_MONOTONIC in ns. To be asked before it is stopped.
pub(crate) fn asleep_since(tid: u32, clocks: &mut Clocks) -> Option<u64> {
    let call = sys::read_text(format!("/proc/{tid}/syscall")).ok()?;
    let nr: i64 = call.split(' ').next()?.parse().ok()?;
    if nr != libc::SYS_restart_syscall && !RESTARTABLE.contains(&nr) {
        return None;
    }
    let cpu = Stat::read(tid).ok()?.field(39) as u32;
    Some(exec_start(tid)?.saturating_add_signed(clocks.offset(cpu)?))
}

/// `se.exec_start` of /proc/TID/sched: when the thread last began or stopped running, in ms of the scheduler's clock.
fn exec_start(tid: u32) -> Option<u64> {
    let text = sys::read_text(format!("/proc/{tid}/sched")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("se.exec_start"))?;
    let (ms, fraction) = line.trim_start_matches([' ', ':']).split_once('.')?;
    Some(ms.parse::<u64>().ok()? * 1_000_000 + fraction.trim().parse::<u64>().ok()?)
}

/// The scheduler's clocks against CLOCK_MONOTONIC. Each CPU's stands still while the hypervisor or an interrupt has the CPU
/// (kernel/sched/core.c, update_rq_clock_task), so each has an offset of its own.
#[derive(Default)]
pub(crate) struct Clocks(HashMap<u32, Option<i64>>);

impl Clocks {
    fn offset(&mut self, cpu: u32) -> Option<i64> {
        *self.0.entry(cpu).or_insert_with(|| measure(cpu))
    }
}

/// Reads our own entry on that CPU; `None` where we may not run on it.
fn measure(cpu: u32) -> Option<i64> {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    let this = nix::unistd::Pid::from_raw(0);
    let before = sched_getaffinity(this).ok()?;
    let mut only = CpuSet::new();
    only.set(cpu as usize).ok()?;
    sched_setaffinity(this, &only).ok()?;
    // Sleeping brings the entry up to date.
    std::thread::sleep(std::time::Duration::from_micros(1));
    let now = sys::clock(libc::CLOCK_MONOTONIC);
    let own = exec_start(sys::gettid() as u32);
    sched_setaffinity(this, &before).ok()?;
    Some(now as i64 - own? as i64)
}

/// What is left of the wait that a stopped thread was caught in. `since`: when it fell asleep; `told`: what the kernel itself knows.
pub(crate) fn remaining(
    tid: u32,
    state: &State,
    since: Option<u64>,
    told: Option<(&Tracker, &Wait)>,
) -> Option<Remaining> {
    let r = &state.registers;
    if r.rax as i64 != ERESTART_RESTARTBLOCK || (r.orig_rax as i64) < 0 {
        return None;
    }
    let nr = state
        .call
        .or_else(|| told.and_then(|(tracker, wait)| continued(tracker, wait, r)))?
        as i64;
    if let Some(nanoseconds) = told.and_then(|(_, wait)| left(wait, nr, r)) {
        return Some(Remaining {
            nr: nr as u64,
            nanoseconds,
        });
    }
    let time = |address: u64| {
        let mut time = [0u8; 16];
        (address != 0).then_some(())?;
        sys::read_memory(tid as i32, address, &mut time).ok()?;
        let word = |at: usize| u64::from_ne_bytes(time[at..at + 8].try_into().unwrap_or_default());
        Some(
            word(0)
                .saturating_mul(1_000_000_000)
                .saturating_add(word(8)),
        )
    };
    let slept = since.map_or(0, |since| {
        sys::clock(libc::CLOCK_MONOTONIC).saturating_sub(since)
    });
    let less = |timeout: u64| timeout.saturating_sub(slept).max(1);
    let left = match nr {
        libc::SYS_nanosleep => time(r.rsi).or_else(|| time(r.rdi).map(less)),
        libc::SYS_clock_nanosleep => time(r.r10).or_else(|| time(r.rdx).map(less)),
        libc::SYS_poll if (r.rdx as i32) >= 0 => Some(less(u64::from(r.rdx as u32) * 1_000_000)),
        libc::SYS_futex if r.rsi & FUTEX_COMMAND == 0 => time(r.r10).map(less),
        _ => None,
    };
    Some(Remaining {
        nr: nr as u64,
        nanoseconds: left.unwrap_or(0),
    })
}

/// The call that the kernel would continue. Which sleep it is the first argument tells: clocks have small numbers.
fn continued(tracker: &Tracker, wait: &Wait, r: &Registers) -> Option<u64> {
    let nr = match tracker.restart_name(wait.function)? {
        "futex_wait_restart" => libc::SYS_futex,
        "do_restart_poll" => libc::SYS_poll,
        _ if r.rdi < 16 => libc::SYS_clock_nanosleep,
        _ => libc::SYS_nanosleep,
    };
    Some(nr as u64)
}

/// What is left until the end that the kernel has noted, 1 at least; `None` where there is none to the call, or it is no time from now.
fn left(wait: &Wait, nr: i64, r: &Registers) -> Option<u64> {
    let (end, clock) = match nr {
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep => {
            (wait.sleep_end, wait.sleep_clock as libc::clockid_t)
        }
        libc::SYS_poll if (r.rdx as i32) >= 0 => (wait.poll_end, libc::CLOCK_MONOTONIC),
        libc::SYS_futex if r.rsi & FUTEX_COMMAND == 0 => (wait.futex_end, libc::CLOCK_MONOTONIC),
        _ => return None,
    };
    (end != 0).then(|| end.saturating_sub(sys::clock(clock)).max(1))
}

/// The system call that a stopped thread was caught in. The one that restart_syscall(2) stands for is the number that the code before the
/// `syscall` instruction loaded into eax.
pub(crate) fn call(tid: i32, r: &Registers) -> Option<u64> {
    if r.orig_rax as i64 != libc::SYS_restart_syscall {
        return (r.orig_rax as i64 >= 0).then_some(r.orig_rax);
    }
    let mut code = [0u8; 64];
    sys::read_memory(tid, r.rip.checked_sub(66)?, &mut code).ok()?;
    code.windows(5)
        .rev()
        .filter(|w| w[0] == 0xb8)
        .find_map(|w| {
            let nr = u32::from_le_bytes([w[1], w[2], w[3], w[4]]);
            RESTARTABLE.contains(&i64::from(nr)).then_some(nr.into())
        })
}

/// The registers of a stopped thread. One that was stopped again just before it would have called restart_syscall(2) is still in the
/// wait that it was interrupted in: a program never makes that call itself.
pub(crate) fn as_interrupted(tid: i32, registers: Registers) -> Registers {
    let mut r = registers;
    let mut instruction = [0; 2];
    if r.rax as i64 == libc::SYS_restart_syscall
        && sys::read_memory(tid, r.rip, &mut instruction).is_ok()
        && instruction == [0x0f, 0x05]
    {
        r.rip += 2;
        (r.rax, r.orig_rax) = (ERESTART_RESTARTBLOCK as u64, r.rax);
    }
    r
}

/// The registers with which to enter the wait again for the time that was left, given a place for a struct timespec and what to
/// put there; `None` when the thread was in no such wait.
pub(crate) fn entry(thread: &Thread, at: u64) -> Option<(Registers, [u64; 2])> {
    let left = thread
        .remaining
        .as_ref()
        .filter(|left| left.nanoseconds != 0)?;
    let mut r = sys::registers_from_bytes(&thread.registers)?;
    (r.rax, r.orig_rax) = (left.nr, u64::MAX);
    match left.nr as i64 {
        libc::SYS_nanosleep => r.rdi = at,
        libc::SYS_clock_nanosleep => r.rdx = at,
        libc::SYS_futex => r.r10 = at,
        libc::SYS_poll => r.rdx = left.nanoseconds.div_ceil(1_000_000),
        _ => return None,
    }
    Some((
        r,
        [
            left.nanoseconds / 1_000_000_000,
            left.nanoseconds % 1_000_000_000,
        ],
    ))
}

/// The registers a thread goes on with. `entered`: what entering its wait again gave.
pub(crate) fn registers(thread: &Thread, entered: Option<u64>) -> Option<Registers> {
    let mut r = sys::registers_from_bytes(&thread.registers)?;
    if r.rax as i64 != ERESTART_RESTARTBLOCK || (r.orig_rax as i64) < 0 {
        return Some(r);
    }
    match (&thread.remaining, entered) {
        // The kernel has a restart block of its own for it now.
        (Some(left), Some(result)) if result as i64 == ERESTART_RESTARTBLOCK => {
            (r.rax, r.orig_rax) = (result, left.nr);
        }
        // It has ended in the meantime.
        (_, Some(result)) => (r.rax, r.orig_rax) = (result, u64::MAX),
        // Absolute timeouts and waits without one: called again as it was.
        (Some(left), None) => (r.rax, r.orig_rax) = (ERESTARTNOHAND as u64, left.nr),
        // Which call it was is not known: it was interrupted.
        (None, None) => (r.rax, r.orig_rax) = (-i64::from(libc::EINTR) as u64, u64::MAX),
    }
    Some(r)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_sleep_is_dated() {
        let (send, receive) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            send.send(sys::gettid()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(300));
        });
        let tid = receive.recv().unwrap() as u32;
        std::thread::sleep(std::time::Duration::from_millis(100));
        let mut clocks = Clocks::default();
        let now = sys::clock(libc::CLOCK_MONOTONIC);
        // A kernel without scheduler statistics shows nothing.
        if let Some(since) = asleep_since(tid, &mut clocks) {
            assert!(since <= now && now - since < 10_000_000_000);
        }
        sleeper.join().unwrap();
    }
}
