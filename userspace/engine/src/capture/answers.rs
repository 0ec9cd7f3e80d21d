//! What is known of a thread, whoever told.

use images::proto::{self};
use remote::Outcome;
use remote::live::State;

use super::process::{name, own_place};
use super::questions::{ProcessQuestions, Questions, first_word};
use crate::freeze::{self, failed};
use crate::procfs::Status;
use crate::told::{Told, ToldOfProcess};
use crate::{CheckpointError, cpu, identity, signals};

/// What is known of a thread.
pub(super) struct Answer {
    pub(super) tid: u32,
    pub(super) state: State,
    pub(super) rseq: Option<proto::Rseq>,
    pub(super) told: Told,
}

/// Adds the registers to what is told already.
pub(super) fn with_states(
    process: &freeze::Process,
    told: Vec<(u32, Told)>,
) -> Result<Vec<Answer>, CheckpointError> {
    let mut answers = Vec::with_capacity(told.len());
    for (tid, told) in told {
        let Some(thread) = process.threads.get(&tid) else {
            continue;
        };
        let (state, rseq) = cpu::state(thread.task()?)
            .map_err(failed(format!("reading the registers of thread {tid}")))?;
        answers.push(Answer {
            tid,
            state,
            rseq,
            told,
        });
    }
    Ok(answers)
}

/// What a thread answered, with what /proc says of it.
pub(super) fn told(
    pid: u32,
    tid: u32,
    status: &Status,
    questions: Questions,
    outcome: &Outcome,
) -> Result<Told, CheckpointError> {
    let own_status = if tid == pid {
        status.clone()
    } else {
        Status::read(tid).map_err(failed(format!("reading /proc/{tid}/status")))?
    };
    let personality =
        remote::sys::read_text(format!("/proc/{pid}/task/{tid}/personality")).unwrap_or_default();
    let of_process = |asked: ProcessQuestions| {
        let (interval_timers, posix_timers) = asked.timers.answers(outcome);
        ToldOfProcess {
            actions: asked.actions.answers(outcome),
            interval_timers,
            posix_timers,
            brk: outcome.results[asked.brk] as u64,
            child_subreaper: first_word(outcome.output(asked.subreaper)) as u32 != 0,
            dumpable: outcome.results[asked.dumpable].max(0) as u32,
            thp_disabled: outcome.results[asked.thp_disabled].max(0) as u32,
            attributes: asked.attributes.answers(outcome),
        }
    };
    Ok(Told {
        inner: own_status.inner("NSpid"),
        name: name(pid, tid),
        personality: u64::from_str_radix(personality.trim(), 16).unwrap_or(0),
        altstack: signals::altstack(outcome.output(questions.altstack)),
        clear_child_tid: first_word(outcome.output(questions.tid_address)),
        death_signal: first_word(outcome.output(questions.death_signal)) as u32,
        timer_slack: outcome.results[questions.timer_slack].max(0) as u64,
        credentials: identity::credentials(
            &own_status,
            outcome.results[questions.securebits].max(0) as u32,
        ),
        place: own_place(pid, tid, &own_status)?,
        seccomp: own_status.number("Seccomp"),
        attributes: questions.attributes.answers(outcome),
        keys: questions.keys.and_then(|keys| keys.answer(outcome)),
        process: questions.process.map(of_process),
    })
}
