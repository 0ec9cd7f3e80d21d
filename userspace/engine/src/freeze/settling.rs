//! Bringing every task to a stop.

use std::collections::{BTreeMap, HashSet, btree_map};
use std::io;
use std::time::{Duration, Instant};

use remote::{Running, Stop, Stopped, Waited, sys, task};

use super::{Frozen, Process, Thread, failed};
use crate::members::Members;
use crate::procfs::{self, Stat, Status};
use crate::{CheckpointError, Refusal, vdso};

/// How long nothing may happen before a task that does not stop is named (it may be waiting for a disk).
const PATIENCE: Duration = Duration::from_secs(30);

/// How long tasks are waited for before the job is looked at again: at first, and at most.
const FIRST_WHILE: Duration = Duration::from_millis(2);
const MOST_WHILE: Duration = Duration::from_millis(32);

/// How often and for how long a thread that is found inside the vdso goes on, so that it is not there when it is saved.
const MOST_TURNS: u32 = 100;
const TURN: Duration = Duration::from_micros(20);

/// Tasks on their way to a stop.
pub(super) struct Moving {
    tasks: Vec<Running>,
    /// Those among them that go on until they exec or end, as their parents wait for that in vfork(2).
    passing: HashSet<u32>,
    /// When one of them has stopped or ended last.
    since: Instant,
    /// How long they are waited for before the job is looked at again.
    pause: Duration,
}

impl Default for Moving {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            passing: HashSet::new(),
            since: Instant::now(),
            pause: FIRST_WHILE,
        }
    }
}

impl Moving {
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    fn check_patience(&self) -> Result<(), CheckpointError> {
        let mut tids = self.tasks.iter().map(|task| task.tid() as u32);
        let passing = tids.clone().find(|tid| self.passing.contains(tid));
        let Some(tid) = passing.or_else(|| tids.next()) else {
            return Ok(());
        };
        if self.since.elapsed() < PATIENCE {
            return Ok(());
        }
        let why = match passing {
            Some(_) => {
                "its parent cannot stop before it execs or ends (vfork(2)), and it does neither"
            }
            None => "it does not stop: it is in an uninterruptible wait in the kernel",
        };
        Err(CheckpointError::Refused(vec![Refusal {
            pid: tid,
            what: format!("task {tid}"),
            why: why.to_owned(),
            advice: format!(
                "see /proc/{tid}/stack and /proc/{tid}/wchan for what it waits for, and try again"
            ),
        }]))
    }
}

impl Frozen {
    /// Attaches to tasks not seen before; says whether there were any.
    pub(super) fn seize_new(
        &mut self,
        members: &Members,
        asleep_since: &mut dyn FnMut(u32) -> Option<u64>,
        moving: &mut Moving,
    ) -> Result<bool, CheckpointError> {
        let mut found = false;
        for &pid in &members.order {
            let entry = self.processes.entry(pid);
            let known = matches!(entry, btree_map::Entry::Occupied(_));
            let process = entry.or_insert_with(|| Process {
                pid,
                threads: BTreeMap::new(),
                stopped_by: None,
                lent: None,
                slot: None,
                options: task::FOLLOW,
            });
            if known
                && process.threads.is_empty()
                && Status::read(pid).is_ok_and(|s| s.state() == 'Z')
            {
                continue;
            }
            for tid in members.threads(pid) {
                if process.threads.contains_key(&tid) {
                    continue;
                }
                let asleep_since = asleep_since(tid);
                let Some(running) = seize(pid, tid, task::FOLLOW)? else {
                    continue;
                };
                // ESRCH: it ended in between.
                if running.interrupt().is_ok() {
                    process.threads.insert(
                        tid,
                        Thread {
                            task: None,
                            state: None,
                            asleep_since,
                            held: Vec::new(),
                            dispatch: None,
                            turns: 0,
                        },
                    );
                    moving.tasks.push(running);
                    found = true;
                }
            }
        }
        Ok(found)
    }

    /// Waits until every moving task has stopped or ended, or for a while: meanwhile there may be new ones that nobody knows.
    pub(super) fn settle(&mut self, moving: &mut Moving) -> Result<(), CheckpointError> {
        let begin = Instant::now();
        let mut pause = Duration::from_micros(10);
        while self.poll(moving)? {
            if begin.elapsed() > moving.pause {
                self.forget_ended(moving);
                self.release_vfork_children(moving)?;
                moving.pause = (moving.pause * 2).min(MOST_WHILE);
                return moving.check_patience();
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
        moving.pause = FIRST_WHILE;
        Ok(())
    }

    /// Looks once what has become of those that move; says whether some still do.
    fn poll(&mut self, moving: &mut Moving) -> Result<bool, CheckpointError> {
        for running in std::mem::take(&mut moving.tasks) {
            let tid = running.tid() as u32;
            let found = running.poll();
            match found.map_err(failed(format!("waiting for task {tid}")))? {
                Err(running) => moving.tasks.push(running),
                Ok(waited) => {
                    moving.since = Instant::now();
                    match waited {
                        Waited::Gone => self.forget(tid),
                        Waited::Stopped(task) => {
                            moving
                                .tasks
                                .extend(self.stopped(task, &mut moving.passing)?);
                        }
                    }
                }
            }
        }
        Ok(!moving.is_empty())
    }

    /// Takes a task that has stopped; gives it back when it has to move on to a better stop.
    fn stopped(
        &mut self,
        task: Stopped,
        passing: &mut HashSet<u32>,
    ) -> Result<Option<Running>, CheckpointError> {
        let tid = task.tid() as u32;
        let stop = task.stop();
        if stop == Stop::Event(libc::PTRACE_EVENT_EXEC) {
            passing.remove(&tid);
        }
        let passes = passing.contains(&tid);
        let signal = match stop {
            Stop::Interrupt | Stop::Group(_) if !passes => {
                let mut processes = self.processes.values_mut();
                let process = processes.find(|process| process.threads.contains_key(&tid));
                let Some(process) = process else {
                    return Ok(None);
                };
                if let Stop::Group(signal) = stop {
                    process.stopped_by = Some(signal);
                }
                let pid = process.pid;
                let Some(thread) = process.threads.get_mut(&tid) else {
                    return Ok(None);
                };
                let goes_on = stop == Stop::Interrupt && thread.turns < MOST_TURNS;
                if !goes_on || !vdso::is_inside(pid, &task) {
                    thread.task = Some(task);
                    return Ok(None);
                }
                thread.turns += 1;
                let resumed = task.resume(0);
                let running = resumed.map_err(failed(format!("resuming task {tid}")))?;
                std::thread::sleep(TURN);
                let _ = running.interrupt();
                return Ok(Some(running));
            }
            // Signals on the way are delivered; the interrupt stops the task behind them.
            Stop::Signal(signal) => signal,
            Stop::Interrupt | Stop::Group(_) | Stop::Event(_) | Stop::Syscall => 0,
        };
        let running = task
            .resume(signal)
            .map_err(failed(format!("resuming task {tid}")))?;
        if !passes {
            // An exec drops the interrupt.
            let _ = running.interrupt();
        }
        Ok(Some(running))
    }

    fn forget(&mut self, tid: u32) {
        for process in self.processes.values_mut() {
            process.threads.remove(&tid);
        }
    }

    /// The end of a main thread is told only when all threads of its process have been reaped (kernel/exit.c, delay_group_leader), which
    /// nobody does with those that had stopped already.
    fn forget_ended(&mut self, moving: &mut Moving) {
        moving.tasks.retain(|task| {
            let tid = task.tid() as u32;
            let ended = Stat::read(tid).map_or(true, |stat| stat.is_zombie());
            if ended {
                self.forget(tid);
            }
            !ended
        });
    }

    /// A parent in vfork(2) cannot stop until its child execs or exits: such children, stopped already, go on until then.
    fn release_vfork_children(&mut self, moving: &mut Moving) -> Result<(), CheckpointError> {
        let waiting: Vec<u32> = (moving.tasks.iter())
            .map(|task| task.tid() as u32)
            .collect();
        for parent in waiting {
            for child in procfs::children(parent) {
                let Some(thread) = self
                    .processes
                    .get_mut(&child)
                    .and_then(|p| p.threads.get_mut(&child))
                else {
                    continue;
                };
                let shares = sys::compare(parent as i32, child as i32, sys::Share::Memory, 0, 0);
                if !shares.is_ok_and(|order| order == std::cmp::Ordering::Equal) {
                    continue;
                }
                let Some(task) = thread.task.take() else {
                    continue;
                };
                let running = task
                    .resume(0)
                    .map_err(failed(format!("resuming task {child}")))?;
                moving.passing.insert(child);
                moving.tasks.push(running);
            }
        }
        Ok(())
    }
}

/// Attaches to a task, unless it has ended.
pub(super) fn seize(pid: u32, tid: u32, options: i32) -> Result<Option<Running>, CheckpointError> {
    // Of a thread that execs the main thread's id becomes its own when that has ended: who was refused may be another than whom one sees.
    const TRIES: usize = 3;
    let mut tries = 0;
    loop {
        let error = match Running::seize(tid as i32, options) {
            Ok(running) => return Ok(Some(running)),
            Err(error) => error,
        };
        tries += 1;
        match seize_refused(pid, tid, error) {
            Err(CheckpointError::NotPermitted { .. }) if tries < TRIES => {
                std::thread::sleep(FIRST_WHILE);
            }
            answer => return answer,
        }
    }
}

/// Why a task could not be seized: gone, ours already (attached at its birth), or really refused.
fn seize_refused(pid: u32, tid: u32, error: io::Error) -> Result<Option<Running>, CheckpointError> {
    let Ok(status) = Status::read(tid) else {
        return Ok(None);
    };
    if matches!(status.state(), 'Z' | 'X') || error.raw_os_error() == Some(libc::ESRCH) {
        return Ok(None);
    }
    let tracer = status.number("TracerPid");
    if tracer == 0 {
        return Err(failed(format!(
            "stopping process {pid} ({})",
            status.text("Name")
        ))(error));
    }
    if tracer == sys::gettid() as u32 || tracer == std::process::id() {
        return Ok(Some(Running::attached(tid as i32)));
    }
    let name = procfs::link(&format!("/proc/{tracer}/exe")).unwrap_or_default();
    Err(CheckpointError::Refused(vec![Refusal {
        pid,
        what: format!("task {tid}"),
        why: format!("process {tracer} ({name}) is tracing it"),
        advice: "let the debugger detach first".to_owned(),
    }]))
}
