//! Signal actions, pending signals and alternate stacks.

use images::proto::{PosixTimer, SigAltStack, SignalAction, Thread};
use remote::{Blob, Expect, Outcome, Program};

/// Highest signal number.
const SIGNALS: u32 = 64;
/// The kernel's struct sigaction on x86-64: handler, flags, restorer, mask.
const ACTION_SIZE: usize = 32;
/// Bytes of a signal set in system calls.
const SET_SIZE: u64 = 8;

/// Of the flags of an alternate stack, what is not its momentary state (include/uapi/linux/signal.h).
pub(crate) const SS_AUTODISARM: u32 = 1 << 31;
/// The flags of actions that `rt_sigaction(2)` shows (include/linux/signal_types.h, `UAPI_SA_FLAGS`).
pub(crate) const USER_FLAGS: u64 = 0xdc00_0807;

/// What only the process itself can be asked.
pub(crate) struct Questions {
    actions: Vec<(u32, Blob)>,
}

pub(crate) fn ask(program: &mut Program) -> Questions {
    let mut actions = Vec::new();
    for signal in (1..=SIGNALS).filter(|&s| s != libc::SIGKILL as u32 && s != libc::SIGSTOP as u32)
    {
        let old = program.output(ACTION_SIZE);
        let args = [signal.into(), 0.into(), old.into(), SET_SIZE.into()];
        program.must(
            libc::SYS_rt_sigaction,
            &args,
            format!("read the action of signal {signal}"),
        );
        actions.push((signal, old));
    }
    Questions { actions }
}

impl Questions {
    pub(crate) fn answers(&self, outcome: &Outcome) -> Vec<SignalAction> {
        let words = |blob| -> Vec<u64> {
            let bytes: &[u8] = outcome.output(blob);
            bytes
                .chunks_exact(8)
                .map(|w| u64::from_ne_bytes(w.try_into().unwrap_or_default()))
                .collect()
        };
        let action = |&(signal, blob): &(u32, Blob)| {
            let words = words(blob);
            let [handler, flags, restorer, mask] = words[..] else {
                return None;
            };
            // SIG_DFL without flags is what a new process has.
            (words != [0; 4]).then_some(SignalAction {
                signal,
                handler,
                flags,
                restorer,
                mask,
            })
        };
        self.actions.iter().filter_map(action).collect()
    }
}

pub(crate) fn ask_altstack(program: &mut Program) -> Blob {
    let old = program.output(24);
    program.must(
        libc::SYS_sigaltstack,
        &[0.into(), old.into()],
        "read the alternate signal stack",
    );
    old
}

pub(crate) fn altstack(bytes: &[u8]) -> Option<SigAltStack> {
    let word = |i: usize| {
        bytes
            .get(i..i + 8)
            .map(|w| u64::from_ne_bytes(w.try_into().unwrap_or_default()))
    };
    let (base, flags, size) = (word(0)?, word(8)? as u32, word(16)?);
    // SS_DISABLE is what a new thread has; SS_ONSTACK is told by the stack pointer.
    (flags & libc::SS_DISABLE as u32 == 0).then_some(SigAltStack {
        base,
        size,
        flags: flags & !(libc::SS_ONSTACK as u32),
    })
}

/// Restores the actions of a process whose signals are all at SIG_DFL.
pub(crate) fn set_actions(program: &mut Program, actions: &[SignalAction]) {
    for action in actions {
        let new = program.words(&[action.handler, action.flags, action.restorer, action.mask]);
        let args = [action.signal.into(), new.into(), 0.into(), SET_SIZE.into()];
        program.must(
            libc::SYS_rt_sigaction,
            &args,
            format!("set the action of signal {}", action.signal),
        );
    }
}

pub(crate) fn set_altstack(program: &mut Program, thread: &Thread) {
    if let Some(stack) = &thread.altstack {
        let new = program.words(&[stack.base, u64::from(stack.flags), stack.size]);
        program.must(
            libc::SYS_sigaltstack,
            &[new.into(), 0.into()],
            "set the alternate signal stack",
        );
    }
}

/// Whether a pending signal was sent by a timer: si_code is SI_TIMER, si_tid its id (sigaction(2)).
pub(crate) fn is_from(info: &[u8], timer: &PosixTimer) -> bool {
    const SI_TIMER: i32 = -2;
    let word = |at: usize| {
        info.get(at..at + 4)
            .map(|b| i32::from_ne_bytes(b.try_into().unwrap_or_default()))
    };
    word(8) == Some(SI_TIMER) && word(16) == Some(timer.id)
}

/// Forgets the SIGCHLD that making the tree has caused.
pub(crate) fn drain(program: &mut Program) {
    let set = program.words(&[1 << (libc::SIGCHLD - 1)]);
    let now = program.words(&[0, 0]);
    let args = [set.into(), 0.into(), now.into(), SET_SIZE.into()];
    program.try_call(libc::SYS_rt_sigtimedwait, &args, "forget SIGCHLD");
}

/// Queues signals for the whole process (`tid` 0) or one thread. A task may send itself any siginfo
/// (kernel/signal.c, do_rt_sigqueueinfo), so the receiver sees the original sender.
/// A periodic timer that has fired queues its signal, with its overruns, by itself as it fires again at once.
pub(crate) fn queue(
    program: &mut Program,
    pid: u32,
    tid: u32,
    pending: &[Vec<u8>],
    timers: &[PosixTimer],
) {
    for info in pending {
        if timers
            .iter()
            .any(|timer| timer.interval != 0 && is_from(info, timer))
        {
            continue;
        }
        let signal = info
            .get(0..4)
            .map_or(0, |b| i32::from_ne_bytes(b.try_into().unwrap_or_default()));
        let blob = program.bytes(info.clone());
        let label = format!("queue signal {signal}");
        if tid == 0 {
            program.call(
                libc::SYS_rt_sigqueueinfo,
                &[pid.into(), signal.into(), blob.into()],
                Expect::Success,
                label,
            );
        } else {
            let args = [pid.into(), tid.into(), signal.into(), blob.into()];
            program.call(libc::SYS_rt_tgsigqueueinfo, &args, Expect::Success, label);
        }
    }
}
