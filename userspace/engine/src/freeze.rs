//! Stopping a whole job, also while it forks, execs and starts threads, and letting it go again.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use remote::confinement::Dispatch;
use remote::live::{self, Lent, State};
use remote::stub::{self, Slot};
use remote::{Outcome, Program, RunError, Stopped, sys};

use tracker::Tracker;

use self::settling::{Moving, seize};
use crate::members::Members;
use crate::waits;
use crate::{CheckpointError, Scope};

mod settling;

/// How long one that does not stop may take for it when the job is let go. It is let go with us then.
const LAST_PATIENCE: Duration = Duration::from_millis(200);

/// A frozen job, by pids as ckptd sees them. Dropping it lets the job run on as if nothing had been.
pub(crate) struct Frozen {
    pub(crate) processes: BTreeMap<u32, Process>,
    /// Their pids, parents before their children.
    pub(crate) order: Vec<u32>,
    pub(crate) since: Instant,
}

/// One frozen process.
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// All threads by tid, the leader's tid being `pid`. Empty for a zombie.
    pub(crate) threads: BTreeMap<u32, Thread>,
    /// The job-control signal that has stopped it.
    pub(crate) stopped_by: Option<i32>,
    /// The stub, while it is lent.
    pub(crate) lent: Option<Lent>,
    /// Where programs run in the leader while the stub is lent.
    pub(crate) slot: Option<Slot>,
    /// How its threads are traced: `PTRACE_O_*`.
    pub(crate) options: i32,
}

/// One frozen thread.
pub(crate) struct Thread {
    /// Taken only while a program runs in it.
    pub(crate) task: Option<Stopped>,
    /// What it goes back to, once registers other than its own may have been set.
    pub(crate) state: Option<State>,
    /// When it fell asleep in a system call with a timeout: CLOCK_MONOTONIC in ns.
    pub(crate) asleep_since: Option<u64>,
    /// Signals it received meanwhile and has not seen yet.
    pub(crate) held: Vec<i32>,
    /// Where its system calls go while none of ours is to go there.
    pub(crate) dispatch: Option<Dispatch>,
    /// How often it was let go on to leave the vdso.
    turns: u32,
}

impl Thread {
    pub(crate) fn task(&self) -> Result<&Stopped, CheckpointError> {
        self.task.as_ref().ok_or(CheckpointError::Gone { pid: 0 })
    }

    /// After an error halfway a task is still ours, and would stand still for as long as we live.
    fn recover(&mut self, tid: u32) {
        if self.task.is_none() {
            self.task = live::recover(tid as i32, LAST_PATIENCE);
        }
    }

    /// Whether it may have something of ours.
    fn is_changed(&self) -> bool {
        self.task.is_some() || self.state.is_some()
    }
}

pub(crate) fn failed(doing: impl Into<String>) -> impl FnOnce(io::Error) -> CheckpointError {
    let doing = doing.into();
    move |source| {
        match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => CheckpointError::NotPermitted {
            doing,
            advice: "run ckptd as root or give it CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE; `ckptd doctor` shows what is missing"
                .to_owned(),
        },
        _ => CheckpointError::System { doing, source },
    }
    }
}

impl From<RunError> for CheckpointError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Gone(pid) => Self::Gone { pid: pid as u32 },
            RunError::System { tid, doing, source } => {
                failed(format!("task {tid}: {doing}"))(source)
            }
            other => Self::System {
                doing: other.to_string(),
                source: io::Error::other("in a stopped task"),
            },
        }
    }
}

impl Frozen {
    /// Stops every task of the job.
    pub(crate) fn freeze(scope: Scope, tracker: Option<&Tracker>) -> Result<Self, CheckpointError> {
        let mut frozen = Self {
            processes: BTreeMap::new(),
            order: Vec::new(),
            since: Instant::now(),
        };
        let mut moving = Moving::default();
        let mut clocks = waits::Clocks::default();
        // Whoever tells later until when a thread waits need not be helped.
        let mut asleep_since = |tid: u32| match tracker {
            Some(tracker) if tracker.tells_waits() => None,
            _ => waits::asleep_since(tid, &mut clocks),
        };
        // A round that finds nobody new and everybody stopped has seen all: stopped tasks make no new ones.
        loop {
            let members = Members::now(scope, tracker);
            let found = frozen.seize_new(&members, &mut asleep_since, &mut moving)?;
            if !found && moving.is_empty() {
                frozen.keep(members.order);
                break;
            }
            frozen.settle(&mut moving)?;
        }
        let (Scope::Tree { root } | Scope::Supervised { root, .. }) = scope;
        match frozen.processes.get(&root) {
            Some(process) if !process.threads.is_empty() => Ok(frozen),
            _ => Err(CheckpointError::Gone { pid: root }),
        }
    }

    /// Stops the leader of one process only; everybody else runs on.
    pub(crate) fn leader(pid: u32) -> Result<Self, CheckpointError> {
        let since = Instant::now();
        // Without following: what the others start meanwhile is not ours.
        let running = seize(pid, pid, libc::PTRACE_O_TRACESYSGOOD)?;
        let running = running.ok_or(CheckpointError::Gone { pid })?;
        let thread = Thread {
            task: Some(live::stop(running)?),
            state: None,
            asleep_since: None,
            held: Vec::new(),
            dispatch: None,
            turns: 0,
        };
        let process = Process {
            pid,
            threads: BTreeMap::from([(pid, thread)]),
            stopped_by: None,
            lent: None,
            slot: None,
            options: libc::PTRACE_O_TRACESYSGOOD,
        };
        Ok(Self {
            processes: BTreeMap::from([(pid, process)]),
            order: vec![pid],
            since,
        })
    }

    /// Takes these, by now, for the whole of the job. Processes without a thread that can be stopped are zombies, or gone.
    fn keep(&mut self, now: Vec<u32>) {
        self.processes
            .retain(|pid, process| !process.threads.is_empty() || now.contains(pid));
        self.order = now;
    }

    /// The process that a thread speaks for.
    pub(crate) fn spoken_for(&self, tid: u32) -> u32 {
        let speaks = |process: &&Process| process.speaker() == tid;
        let process = self.processes.values().find(speaks);
        process.map_or(tid, |process| process.pid)
    }

    /// Runs a program in the leader of a process to which the stub is lent.
    pub(crate) fn run(&mut self, pid: u32, program: &Program) -> Result<Outcome, CheckpointError> {
        self.run_making(pid, program).map(|(outcome, _)| outcome)
    }

    /// As [`Frozen::run`]; also the id of the last task that the program has made, attached and about to stop.
    pub(crate) fn run_making(
        &mut self,
        pid: u32,
        program: &Program,
    ) -> Result<(Outcome, Option<u32>), CheckpointError> {
        let mut made = None;
        let gone = || CheckpointError::Gone { pid };
        let process = self.processes.get_mut(&pid).ok_or_else(gone)?;
        let slot = process.slot.ok_or_else(gone)?;
        let speaker = process.speaker();
        let leader = process.threads.get_mut(&speaker).ok_or_else(gone)?;
        let mut task = leader.task.take().ok_or_else(gone)?;
        let mut run = stub::Run::new(slot, program);
        loop {
            match run.start(task)? {
                Ok(running) => {
                    let finished = run.finish(running, &mut |new| made = Some(new));
                    task = finished.inspect_err(|error| {
                        // A call that fails ends the program, and the task stops as after the last one.
                        if matches!(error, RunError::Call { .. } | RunError::Unexpected { .. }) {
                            leader.task = Some(Stopped::known(speaker as i32));
                        }
                    })?;
                }
                Err(task) => {
                    leader.held.append(&mut run.held);
                    leader.task = Some(task);
                    return Ok((run.into_outcome(), made));
                }
            }
        }
    }

    /// Lets the job run on, or with `kill` ends it where it stands.
    pub(crate) fn release(&mut self, kill: bool) {
        if kill {
            for process in std::mem::take(&mut self.processes).into_values() {
                let _ = sys::kill(process.pid as i32, libc::SIGKILL);
            }
            return;
        }
        for process in self.processes.values_mut() {
            let threads = process.threads.iter_mut();
            for (&tid, thread) in threads.filter(|(_, thread)| thread.is_changed()) {
                thread.recover(tid);
            }
            process.restore();
        }
        let processes = std::mem::take(&mut self.processes);
        let threads = processes.into_values().flat_map(|process| {
            let threads = process.threads.into_iter();
            threads.map(move |(tid, thread)| (process.pid, tid, thread))
        });
        // Those that have not stopped come last: they may wait for the others.
        let (stopped, moving): (Vec<_>, Vec<_>) =
            threads.partition(|(.., thread)| thread.is_changed());
        for (pid, tid, mut thread) in stopped.into_iter().chain(moving) {
            thread.recover(tid);
            if let Some(task) = thread.task {
                let _ = task.detach(0);
            }
            for signal in thread.held {
                let _ = sys::tgkill(pid as i32, tid as i32, signal);
            }
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.release(false);
    }
}

impl Process {
    /// The thread through which all that belongs to the process is seen: its leader, or where that has ended the first of the others.
    pub(crate) fn speaker(&self) -> u32 {
        let first = self.threads.keys().next().copied();
        first
            .filter(|_| !self.threads.contains_key(&self.pid))
            .unwrap_or(self.pid)
    }

    /// Gives every thread its own registers and mask back and takes the stub out. Errors mean that a task has died.
    fn restore(&mut self) {
        for thread in self.threads.values() {
            if let (Some(task), Some(state)) = (&thread.task, &thread.state) {
                // In this order: as long as the registers point into the stub, it leads back by itself.
                let _ = task.set_signal_mask(state.mask);
                let _ = task.set_registers(&state.registers);
            }
        }
        let speaker = self.speaker();
        if let Some(lent) = self.lent.take()
            && let Some(speaker) = self.threads.get_mut(&speaker)
            && let Some(task) = speaker.task.take()
        {
            speaker.task = lent.remove(task).ok();
        }
        for thread in self.threads.values() {
            if let (Some(task), Some(dispatch)) = (&thread.task, &thread.dispatch) {
                let _ = task.set_dispatch(dispatch);
            }
        }
    }
}

/// The signal that tells of a program's end: one that nobody in the process has pending, as that would be taken for it or from it, and
/// that it ignores, by choice or by default, unless it catches all of them (Go does).
pub(crate) fn quiet_signal(caught: u64, pending: u64) -> i32 {
    let free_of = |set: u64| {
        let mut signals = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD].into_iter();
        signals.find(|signal| set >> (signal - 1) & 1 == 0)
    };
    let signal = free_of(caught | pending).or_else(|| free_of(pending));
    signal.unwrap_or(libc::SIGURG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_signal_is_never_taken_for_ours() {
        let set = |signals: &[i32]| {
            signals
                .iter()
                .fold(0, |set, signal| set | 1 << (signal - 1))
        };
        assert_eq!(quiet_signal(0, 0), libc::SIGURG);
        assert_eq!(quiet_signal(set(&[libc::SIGURG]), 0), libc::SIGWINCH);
        assert_eq!(quiet_signal(!0, set(&[libc::SIGURG])), libc::SIGWINCH);
    }
}
