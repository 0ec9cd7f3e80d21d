//! What only a thread itself can be asked, as a program for it.

use images::proto::{self};
use remote::{Blob, Program};

use super::lending::keep_altstack;
use crate::{attributes, identity, keys, signals, timers};

/// Questions put to one thread, and for the leader to its process.
pub(super) struct Questions {
    pub(super) program: Program,
    pub(super) altstack: Blob,
    pub(super) securebits: usize,
    pub(super) tid_address: Blob,
    pub(super) death_signal: Blob,
    pub(super) timer_slack: usize,
    pub(super) attributes: attributes::Questions,
    pub(super) keys: Option<keys::Questions>,
    pub(super) process: Option<ProcessQuestions>,
}

pub(super) struct ProcessQuestions {
    pub(super) actions: signals::Questions,
    pub(super) timers: timers::Questions,
    pub(super) brk: usize,
    pub(super) subreaper: Blob,
    pub(super) dumpable: usize,
    pub(super) thp_disabled: usize,
    pub(super) attributes: attributes::Questions,
}

pub(super) const PR_GET_PDEATHSIG: u64 = 2;
pub(super) const PR_GET_DUMPABLE: u64 = 3;
pub(super) const PR_GET_TIMERSLACK: u64 = 30;
pub(super) const PR_GET_CHILD_SUBREAPER: u64 = 37;
pub(super) const PR_GET_TID_ADDRESS: u64 = 40;
pub(super) const PR_GET_THP_DISABLE: u64 = 42;

pub(super) fn ask(frame: u64, timers: Option<Vec<proto::PosixTimer>>) -> Questions {
    let mut program = Program::new();
    keep_altstack(&mut program, frame);
    let altstack = signals::ask_altstack(&mut program);
    let prctl = |program: &mut Program, operation: u64, out: Option<Blob>, label: &str| {
        let out = out.map_or(0u64.into(), Into::into);
        program.try_call(
            libc::SYS_prctl,
            &[operation.into(), out, 0.into(), 0.into(), 0.into()],
            label,
        )
    };
    let securebits = prctl(
        &mut program,
        identity::PR_GET_SECUREBITS,
        None,
        "read the securebits",
    );
    let timer_slack = prctl(
        &mut program,
        PR_GET_TIMERSLACK,
        None,
        "read the timer slack",
    );
    let tid_address = program.output(8);
    prctl(
        &mut program,
        PR_GET_TID_ADDRESS,
        Some(tid_address),
        "read clear_child_tid",
    );
    let death_signal = program.output(8);
    prctl(
        &mut program,
        PR_GET_PDEATHSIG,
        Some(death_signal),
        "read the parent-death signal",
    );
    let process = timers.map(|timers| ProcessQuestions {
        actions: signals::ask(&mut program),
        timers: timers::ask(&mut program, timers),
        brk: program.try_call(libc::SYS_brk, &[0.into()], "read the end of the heap"),
        subreaper: {
            let out = program.output(8);
            prctl(
                &mut program,
                PR_GET_CHILD_SUBREAPER,
                Some(out),
                "read child_subreaper",
            );
            out
        },
        dumpable: prctl(&mut program, PR_GET_DUMPABLE, None, "read dumpable"),
        thp_disabled: prctl(&mut program, PR_GET_THP_DISABLE, None, "read thp_disable"),
        attributes: attributes::ask(&mut program, true),
    });
    let attributes = attributes::ask(&mut program, false);
    let keys = keys::ask(&mut program);
    Questions {
        program,
        altstack,
        securebits,
        tid_address,
        death_signal,
        timer_slack,
        attributes,
        keys,
        process,
    }
}

pub(super) fn first_word(bytes: &[u8]) -> u64 {
    bytes
        .get(..8)
        .map_or(0, |b| u64::from_ne_bytes(b.try_into().unwrap_or_default()))
}
