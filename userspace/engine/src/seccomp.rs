//! seccomp(2): the filters of a thread, or strict mode. A thread's filters are those of all whom it descends from and its own.

use images::proto::{Process, SeccompFilter, Thread};
use remote::{Expect, Program, Stopped};

use crate::files::Why;

/// include/uapi/linux/seccomp.h, include/uapi/linux/filter.h
const MODE_STRICT: u32 = 1;
const SET_MODE_FILTER: u64 = 1;
const FLAG_TSYNC: u64 = 1;
const FLAG_LOG: u64 = 2;
const RETURN_CONSTANT: u16 = 0x06;
const USER_NOTIFICATION: u32 = 0x7fc0_0000;
const ACTION: u32 = 0xffff_0000;
const PR_SET_SECCOMP: u64 = 22;
/// struct sock_filter: code, two jumps, a constant.
const INSTRUCTION: usize = 8;

/// The filters of a stopped thread as ids in `known`, the oldest first, and whether it is in strict mode.
pub(crate) fn capture(
    task: &Stopped,
    mode: u32,
    known: &mut Vec<SeccompFilter>,
) -> Result<(Vec<u32>, bool), Why> {
    if mode == 0 || mode == MODE_STRICT {
        return Ok((Vec::new(), mode == MODE_STRICT));
    }
    let filters = task.seccomp_filters().map_err(|error| {
        let why = format!("its filters cannot be read: {error}");
        let advice = "checkpoint as root (CAP_SYS_ADMIN), and not inside a sandbox";
        (why, advice.to_owned())
    })?;
    let mut ids = Vec::with_capacity(filters.len());
    for (program, log) in filters {
        if notifies(&program) {
            let why = "a filter of it lets another process decide about system calls (SECCOMP_RET_USER_NOTIF)";
            let advice = "start the program without that sandbox";
            return Err((why.to_owned(), advice.to_owned()));
        }
        let filter = SeccompFilter { program, log };
        let place = known.iter().position(|other| *other == filter);
        let place = place.unwrap_or_else(|| {
            known.push(filter);
            known.len() - 1
        });
        ids.push(place as u32 + 1);
    }
    Ok((ids, false))
}

/// Whether a filter may end in a question to whoever listens.
fn notifies(program: &[u8]) -> bool {
    program.chunks_exact(INSTRUCTION).any(|instruction| {
        let code = u16::from_ne_bytes([instruction[0], instruction[1]]);
        let constant = instruction[4..]
            .first_chunk()
            .map_or(0, |k| u32::from_ne_bytes(*k));
        code == RETURN_CONSTANT && constant & ACTION == USER_NOTIFICATION
    })
}

/// Whether system calls of any of its threads are filtered.
pub(crate) fn confines(process: &Process) -> bool {
    let confined = |thread: &Thread| !thread.filters.is_empty() || thread.strict;
    process.threads.iter().any(confined)
}

/// How many of the oldest filters all threads have. They have them from one of them, and may give each other more (SECCOMP_FILTER_FLAG_TSYNC)
/// only as long as the older ones are the very same.
fn common(process: &Process) -> usize {
    let first = process
        .threads
        .first()
        .map_or(&[][..], |first| &first.filters);
    let same = |thread: &Thread| {
        let pairs = first.iter().zip(&thread.filters);
        pairs.take_while(|(one, other)| one == other).count()
    };
    process.threads.iter().map(same).min().unwrap_or(0)
}

/// Puts a thread's filters in force, the leader those that all have. The tracer suspends them until everything runs.
pub(crate) fn confine(
    program: &mut Program,
    process: &Process,
    thread: &Thread,
    known: &[SeccompFilter],
) {
    let common = common(process);
    for (nth, &id) in thread.filters.iter().enumerate() {
        let Some(filter) = known.get((id as usize).wrapping_sub(1)) else {
            continue;
        };
        let leads = thread.tid == process.pid;
        if nth < common && !leads {
            continue;
        }
        let mut flags = if nth < common { FLAG_TSYNC } else { 0 };
        flags |= if filter.log { FLAG_LOG } else { 0 };
        let code = program.bytes(filter.program.clone());
        // struct sock_fprog
        let record = program.words(&[(filter.program.len() / INSTRUCTION) as u64, 0]);
        program.point(record, 8, code);
        let args = [SET_MODE_FILTER.into(), flags.into(), record.into()];
        let label = format!("filter system calls ({})", nth + 1);
        program.call(libc::SYS_seccomp, &args, Expect::Exactly(0), label);
    }
    if thread.strict {
        let args = [PR_SET_SECCOMP.into(), MODE_STRICT.into()];
        program.must(libc::SYS_prctl, &args, "allow hardly any system call");
    }
}

/// Bytes of filters that a thread other than its leader puts in force, at most.
pub(crate) fn largest(processes: &[Process], known: &[SeccompFilter]) -> usize {
    let own = |process: &Process| {
        let common = common(process);
        let bytes = |id: &u32| {
            let filter = known.get((*id as usize).wrapping_sub(1));
            filter.map_or(0, |filter| filter.program.len() + 2 * INSTRUCTION)
        };
        let sum = |thread: &Thread| thread.filters.iter().skip(common).map(bytes).sum();
        process.threads.iter().skip(1).map(sum).max().unwrap_or(0)
    };
    processes.iter().map(own).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(filters: &[&[u32]]) -> Process {
        let thread = |filters: &&[u32]| Thread {
            filters: filters.to_vec(),
            ..Default::default()
        };
        Process {
            threads: filters.iter().map(thread).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn what_all_threads_have() {
        assert_eq!(common(&process(&[&[1, 2], &[1, 2, 3], &[1, 2]])), 2);
        assert_eq!(common(&process(&[&[1, 2], &[2, 1]])), 0);
        assert_eq!(common(&process(&[&[1], &[]])), 0);
        assert!(confines(&process(&[&[], &[1]])) && !confines(&process(&[&[]])));
    }

    #[test]
    fn who_asks_others() {
        let mut program = vec![0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];
        assert!(!notifies(&program));
        program.extend([0x06, 0, 0, 0, 0, 0, 0xc0, 0x7f]);
        assert!(notifies(&program));
    }
}
