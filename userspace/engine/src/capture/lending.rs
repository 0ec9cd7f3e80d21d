//! The stub is lent to the threads of a process, and taken back.

use std::collections::HashMap;

use images::proto::{self};
use remote::live::{FRAME_ALTSTACK, Lent, Room, State};
use remote::{Program, RunError, stub};

use super::answers::{Answer, told};
use super::questions::ask;
use crate::freeze::{self, Frozen, failed};
use crate::procfs::Status;
use crate::{CheckpointError, Refusal, cpu, dispatch, procfs};

/// The stub's place for one thread, and what the thread goes back to.
pub(crate) struct Lending {
    pub(crate) tid: u32,
    pub(crate) slot: stub::Slot,
    pub(crate) state: State,
    pub(crate) rseq: Option<proto::Rseq>,
}

/// Lends the stub to the stopped threads of a process; `status` is that of the one that speaks for it.
pub(crate) fn lend(
    process: &mut freeze::Process,
    status: &Status,
) -> Result<Vec<Lending>, CheckpointError> {
    let pid = process.speaker();
    let room =
        Room::find(pid as i32).map_err(failed(format!("reading the mappings of process {pid}")))?;
    let room = room.ok_or_else(|| {
        CheckpointError::Refused(vec![Refusal {
            pid,
            what: "its executable mappings".to_owned(),
            why: "none has a few unused bytes at its end for us to run from".to_owned(),
            advice: "this happens only without a vdso: boot without vdso=0".to_owned(),
        }])
    })?;
    let ended = usize::from(pid != process.pid);
    if !room.is_calm() && procfs::threads(pid).len() > process.threads.len() + ended {
        return Err(CheckpointError::System {
            doing: format!("asking process {pid} alone"),
            source: std::io::Error::other("it may still be busy with a ckptd that was killed"),
        });
    }
    dispatch::lift(process, status)?;
    let mut states = Vec::new();
    for (&tid, thread) in &mut process.threads {
        let task = thread.task.take().ok_or(CheckpointError::Gone { pid })?;
        let task = thread.task.insert(room.run_out(task)?);
        let (state, rseq) =
            cpu::state(task).map_err(failed(format!("reading the registers of thread {tid}")))?;
        thread.state = Some(state.clone());
        states.push((tid, state, rseq));
    }
    let xstate = states
        .iter()
        .map(|(_, state, _)| state.xstate.len())
        .max()
        .unwrap_or(0);
    let count = states.len();
    let leader = process
        .threads
        .get_mut(&pid)
        .ok_or(CheckpointError::Gone { pid })?;
    let task = leader.task.take().ok_or(CheckpointError::Gone { pid })?;
    let (task, lent) =
        Lent::install(task, room, count, xstate).map_err(|error| no_room(pid, error))?;
    leader.task = Some(task);
    // A signal may have been delivered just before: its handler's frame is where the leader goes on now.
    refresh(leader, &mut states, pid)?;
    let others = process.threads.keys().copied().chain([process.pid]);
    let others: HashMap<u32, Status> = others
        .filter(|&tid| tid != pid)
        .filter_map(|tid| Some((tid, Status::read(tid).ok()?)))
        .collect();
    let pending = others.values().map(|other| other.hex("SigPnd"));
    let pending = pending.fold(status.hex("SigPnd") | status.hex("ShdPnd"), |a, b| a | b);
    let signal = freeze::quiet_signal(status.hex("SigCgt"), pending);
    let inner = |tid: u32| others.get(&tid).unwrap_or(status).inner("NSpid") as i32;
    let inner_pid = inner(process.pid);
    let mut lendings = Vec::new();
    for (nth, (tid, state, rseq)) in states.into_iter().enumerate() {
        let Some(thread) = process.threads.get(&tid) else {
            continue;
        };
        let ids = (inner_pid, inner(tid));
        let slot = lent.slot(nth, thread.task()?, ids, signal, &state)?;
        if tid == pid {
            process.slot = Some(slot);
        }
        lendings.push(Lending {
            tid,
            slot,
            state,
            rseq,
        });
    }
    process.lent = Some(lent);
    Ok(lendings)
}

/// Lends the stub to a process and asks all its threads at once.
pub(super) fn interview(
    process: &mut freeze::Process,
    status: &Status,
    mut known: Vec<proto::PosixTimer>,
) -> Result<Vec<Answer>, CheckpointError> {
    let pid = process.speaker();
    let mut asked = Vec::new();
    for Lending {
        tid,
        slot,
        state,
        rseq,
    } in lend(process, status)?
    {
        let questions = ask(slot.frame, (tid == pid).then(|| std::mem::take(&mut known)));
        asked.push((tid, slot, state, rseq, questions));
    }
    let mut runs: Vec<(u32, stub::Run<'_>, Option<remote::Running>)> = Vec::new();
    for (tid, slot, _, _, questions) in &asked {
        let mut run = stub::Run::new(*slot, &questions.program);
        let Some(task) = process
            .threads
            .get_mut(tid)
            .and_then(|thread| thread.task.take())
        else {
            continue;
        };
        let running = run.start(task)?.ok();
        runs.push((*tid, run, running));
    }
    let mut outcomes = HashMap::new();
    for (tid, mut run, running) in runs {
        let mut running = running;
        while let Some(moving) = running.take() {
            let task = run.finish(moving, &mut |_| {})?;
            match run.start(task)? {
                Ok(moving) => running = Some(moving),
                Err(task) => {
                    if let Some(thread) = process.threads.get_mut(&tid) {
                        thread.held.append(&mut run.held);
                        thread.task = Some(task);
                    }
                }
            }
        }
        outcomes.insert(tid, run.into_outcome());
    }
    let mut answers = Vec::with_capacity(asked.len());
    for (tid, _, state, rseq, questions) in asked {
        let Some(outcome) = outcomes.remove(&tid) else {
            continue;
        };
        answers.push(Answer {
            tid,
            state,
            rseq,
            told: told(pid, tid, status, questions, &outcome)?,
        });
    }
    Ok(answers)
}

/// Lends the stub to a process that has been told of without it, to run a program in its leader.
pub(crate) fn borrow(frozen: &mut Frozen, pid: u32) -> Result<(), CheckpointError> {
    let process = (frozen.processes.get_mut(&pid)).ok_or(CheckpointError::Gone { pid })?;
    if process.lent.is_some() {
        return Ok(());
    }
    let speaker = process.speaker();
    let status =
        Status::read(speaker).map_err(failed(format!("reading /proc/{speaker}/status")))?;
    lend(process, &status)?;
    let frame = process.slot.map_or(0, |slot| slot.frame);
    let mut keep = Program::new();
    keep_altstack(&mut keep, frame);
    frozen.run(pid, &keep).map(drop)
}

/// First of all the way back gets the alternate stack that rt_sigreturn would otherwise take away.
pub(crate) fn keep_altstack(program: &mut Program, frame: u64) {
    program.must(
        libc::SYS_sigaltstack,
        &[0.into(), (frame + FRAME_ALTSTACK).into()],
        "keep the alternate stack",
    );
}

/// The one thing that can go wrong with lending the stub and that its user can change.
pub(super) fn no_room(pid: u32, error: RunError) -> CheckpointError {
    match error {
        RunError::Call { source, .. } if source.raw_os_error() == Some(libc::ENOMEM) => {
            CheckpointError::Refused(vec![Refusal {
                pid,
                what: "its address space".to_owned(),
                why: "it is full (RLIMIT_AS, or vm.max_map_count): there is no room for the few pages by which we ask the process about itself"
                    .to_owned(),
                advice: format!("raise the limit: prlimit --pid {pid} --as=unlimited, or sysctl vm.max_map_count"),
            }])
        }
        error => error.into(),
    }
}

/// Reads the leader's registers once more.
pub(super) fn refresh(
    leader: &mut freeze::Thread,
    states: &mut [(u32, State, Option<proto::Rseq>)],
    pid: u32,
) -> Result<(), CheckpointError> {
    let (state, _) = cpu::state(leader.task()?)
        .map_err(failed(format!("reading the registers of thread {pid}")))?;
    leader.state = Some(state.clone());
    if let Some(entry) = states.iter_mut().find(|(tid, _, _)| *tid == pid) {
        entry.1 = state;
    }
    Ok(())
}
