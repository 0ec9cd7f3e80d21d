//! From a frozen job to a snapshot.

use std::collections::HashMap;
use std::os::fd::AsFd;

use images::proto::process::State as ProcessState;
use images::proto::{self, Descriptor, Process, Snapshot, Thread};
use remote::live::{FRAME_ALTSTACK, Lent, Room, State};
use remote::{Blob, Outcome, Program, RunError, stub, sys};
use tracker::Tracker;

use crate::files::{Table, directory, outer::Outer, pty};
use crate::freeze::{self, Frozen, failed};
use crate::pages::Source;
use crate::procfs::{Stat, Status};
use crate::told::{self, Told, ToldOfProcess};
use crate::track::SpaceNumbers;
use crate::{
    CheckpointError, CheckpointOptions, Refusal, Scope, cpu, host, identity, ipc, limits, maps,
    plan, procfs, scheduling, signals, timers, waits,
};

/// The state of a frozen job, and where its pages are.
pub(crate) struct Captured {
    pub(crate) snapshot: Snapshot,
    pub(crate) sources: Vec<Source>,
    pub(crate) numbers: SpaceNumbers,
}

/// Questions put to one thread, and for the leader to its process.
struct Questions {
    program: Program,
    altstack: Blob,
    securebits: usize,
    tid_address: Blob,
    death_signal: Blob,
    timer_slack: usize,
    process: Option<ProcessQuestions>,
}

struct ProcessQuestions {
    actions: signals::Questions,
    timers: timers::Questions,
    brk: usize,
    subreaper: Blob,
    dumpable: usize,
    thp_disabled: usize,
}

const PR_GET_PDEATHSIG: u64 = 2;
const PR_GET_DUMPABLE: u64 = 3;
const PR_GET_TIMERSLACK: u64 = 30;
const PR_GET_CHILD_SUBREAPER: u64 = 37;
const PR_GET_TID_ADDRESS: u64 = 40;
const PR_GET_THP_DISABLE: u64 = 42;

fn ask(frame: u64, timers: Option<Vec<proto::PosixTimer>>) -> Questions {
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
    });
    Questions {
        program,
        altstack,
        securebits,
        tid_address,
        death_signal,
        timer_slack,
        process,
    }
}

fn first_word(bytes: &[u8]) -> u64 {
    bytes
        .get(..8)
        .map_or(0, |b| u64::from_ne_bytes(b.try_into().unwrap_or_default()))
}

/// Ids outside and inside the job's pid namespace.
struct Ids {
    inner: HashMap<u32, u32>,
    outer_session: u32,
    outer_group: u32,
}

/// Reads the state of a frozen job; `numbers` are those of page spaces known before.
///
/// # Errors
/// [`CheckpointError::Refused`] lists everything that could not be restored.
pub(crate) fn capture(
    frozen: &mut Frozen,
    options: &CheckpointOptions<'_>,
    numbers: SpaceNumbers,
) -> Result<Captured, CheckpointError> {
    let (Scope::Tree { root } | Scope::Supervised { root, .. }) = options.scope;
    let mut refusals = Vec::new();
    let order: Vec<u32> = freeze::members(options.scope)
        .into_iter()
        .filter(|pid| frozen.processes.contains_key(pid))
        .collect();
    let statuses: HashMap<u32, Status> = order
        .iter()
        .filter_map(|&pid| Some((pid, Status::read(pid).ok()?)))
        .collect();
    check(&order, &statuses, root, &mut refusals);
    if !refusals.is_empty() {
        return Err(CheckpointError::Refused(refusals));
    }
    let ids = ids(&statuses, root);
    let outer = Outer::of(options.stdio_of, order.contains(&options.stdio_of));
    let mut table = Table::new(outer, numbers);
    table.members.clone_from(&ids.inner);
    let (mut processes, mut sources) = (Vec::new(), Vec::new());
    for pid in &order {
        let Some(process) = frozen.processes.get_mut(pid) else {
            continue;
        };
        let Some(status) = statuses.get(pid) else {
            continue;
        };
        let stat = Stat::read(*pid).map_err(failed(format!("reading /proc/{pid}/stat")))?;
        let mut record = relations(status, &stat, &ids, &statuses);
        if process.threads.is_empty() {
            // Orphaned zombies are their adopter's to wait for.
            if record.ppid != 0 {
                record.set_state(ProcessState::Zombie);
                record.wait_status = stat.field(52) as i32;
                record.threads = vec![Thread {
                    tid: record.pid,
                    name: name(*pid, *pid),
                    ..Default::default()
                }];
                processes.push(record);
            }
            continue;
        }
        if let Some(signal) = process.stopped_by {
            record.set_state(ProcessState::Stopped);
            record.wait_status = signal;
        }
        one(
            process,
            options.tracker,
            status,
            &stat,
            &ids,
            &mut record,
            &mut table,
            &mut refusals,
            &mut sources,
        )?;
        processes.push(record);
    }
    let tables: Vec<(u32, Vec<Descriptor>)> = {
        let outer = |inner: u32| {
            ids.inner
                .iter()
                .find(|(_, id)| **id == inner)
                .map_or(inner, |(outer, _)| *outer)
        };
        processes
            .iter()
            .map(|p| (outer(p.pid), p.descriptors.clone()))
            .collect()
    };
    let borrowed: Vec<(u32, &[Descriptor])> =
        tables.iter().map(|(pid, d)| (*pid, d.as_slice())).collect();
    table.finish(
        &borrowed,
        &mut |pid, program| {
            borrow(frozen, pid)?;
            frozen.run(pid, program)
        },
        &mut refusals,
    )?;
    let outer: Vec<u32> = tables.iter().map(|(pid, _)| *pid).collect();
    pty::controlling(&mut processes, &outer, &table.files, &mut refusals);
    let job = ipc::Job {
        root,
        members: &ids.inner,
        processes: &processes,
    };
    ipc::segments::capture(&mut table, &job, &mut refusals);
    let semaphores = ipc::semaphores::capture(&job, &mut refusals);
    let queues = ipc::messages::capture(&job, &mut refusals);
    for (space, file, size) in std::mem::take(&mut table.objects) {
        let areas = memory::Object::new(file.as_fd()).data(size)?;
        sources.push(Source::Object {
            space,
            file: file.into(),
            areas,
        });
    }
    let command = std::fs::read(format!("/proc/{root}/cmdline")).unwrap_or_default();
    let snapshot = Snapshot {
        host: Some(host::now()),
        processes,
        files: table.files,
        shared: table.shared,
        semaphores,
        queues,
        root: ids.inner.get(&root).copied().unwrap_or(root),
        command: String::from_utf8_lossy(&command)
            .split_terminator('\0')
            .map(str::to_owned)
            .collect(),
    };
    // Whatever a plan would stumble over is known now, while the job can still be told.
    refusals.extend(plan::impossible(&snapshot));
    if refusals.is_empty() {
        Ok(Captured {
            snapshot,
            sources,
            numbers: table.spaces,
        })
    } else {
        Err(CheckpointError::Refused(refusals))
    }
}

/// Everything that can be told from outside to be impossible.
fn check(order: &[u32], statuses: &HashMap<u32, Status>, root: u32, refusals: &mut Vec<Refusal>) {
    let mut refuse = |pid: u32, what: &str, why: &str, advice: &str| {
        refusals.push(Refusal {
            pid,
            what: what.to_owned(),
            why: why.to_owned(),
            advice: advice.to_owned(),
        });
    };
    let namespaces = |pid: u32| {
        ["mnt", "user", "net", "ipc", "uts", "pid", "time", "cgroup"]
            .map(|name| procfs::link(&format!("/proc/{pid}/ns/{name}")).ok())
    };
    let (ours, theirs) = (namespaces(std::process::id()), namespaces(root));
    let ended = statuses
        .get(&root)
        .is_some_and(|status| status.state() == 'Z');
    if !ended && (1..=4).chain(6..8).any(|nth| ours[nth] != theirs[nth]) {
        let advice = "run ckptd inside the container";
        refuse(
            root,
            "its namespaces",
            "the job is in other namespaces (a container's) than ckptd",
            advice,
        );
    }
    for pid in order {
        let Some(status) = statuses.get(pid) else {
            continue;
        };
        if status.state() == 'Z' {
            if status.number("Threads") > 1 {
                refuse(
                    *pid,
                    "its leader thread",
                    "it has ended while other threads run on",
                    "let the main thread wait for the others",
                );
            }
            continue;
        }
        if status.number("Seccomp") != 0 {
            refuse(
                *pid,
                "its seccomp filter",
                "seccomp filters are not supported yet",
                "start the program without a sandbox",
            );
        }
        if *pid != root && namespaces(*pid) != theirs && status.state() != 'Z' {
            refuse(
                *pid,
                "its namespaces",
                "it is in other namespaces than the rest of the job",
                "start it without unshare or a sandbox",
            );
        }
        let parent = status.number("PPid");
        for (share, what) in [
            (sys::Share::Memory, "memory"),
            (sys::Share::Descriptors, "descriptor table"),
        ] {
            let same = statuses.contains_key(&parent)
                && sys::compare(*pid as i32, parent as i32, share, 0, 0)
                    .is_ok_and(|order| order == std::cmp::Ordering::Equal);
            if same {
                refuse(
                    *pid,
                    &format!("its {what}"),
                    &format!("it shares its {what} with its parent {parent} (clone(2))"),
                    "use threads, or fork",
                );
            }
        }
    }
}

fn ids(statuses: &HashMap<u32, Status>, root: u32) -> Ids {
    let inner = statuses
        .iter()
        .map(|(&pid, status)| (pid, status.inner("NSpid")))
        .collect();
    let of = |name: &str| statuses.get(&root).map_or(0, |status| status.inner(name));
    let pid = of("NSpid");
    // What the root has from those who started it is outside of the job.
    let outside = |name: &str| if of(name) == pid { u32::MAX } else { of(name) };
    Ids {
        inner,
        outer_session: outside("NSsid"),
        outer_group: outside("NSpgid"),
    }
}

/// Who and whose child a process is.
fn relations(status: &Status, stat: &Stat, ids: &Ids, statuses: &HashMap<u32, Status>) -> Process {
    let parent = status.number("PPid");
    let sid = status.inner("NSsid");
    let pgid = status.inner("NSpgid");
    Process {
        pid: status.inner("NSpid"),
        ppid: if statuses.contains_key(&parent) {
            ids.inner.get(&parent).copied().unwrap_or(0)
        } else {
            0
        },
        sid: if sid == ids.outer_session { 0 } else { sid },
        pgid: if pgid == ids.outer_group { 0 } else { pgid },
        exit_signal: stat.field(38) as u32,
        shares_fs: statuses.contains_key(&parent)
            && sys::compare(
                status.number("Pid") as i32,
                parent as i32,
                sys::Share::Fs,
                0,
                0,
            )
            .is_ok_and(|order| order == std::cmp::Ordering::Equal),
        ..Default::default()
    }
}

/// Captures one process that is not a zombie.
fn one(
    process: &mut freeze::Process,
    tracker: Option<&Tracker>,
    status: &Status,
    stat: &Stat,
    ids: &Ids,
    record: &mut Process,
    table: &mut Table,
    refusals: &mut Vec<Refusal>,
    sources: &mut Vec<Source>,
) -> Result<(), CheckpointError> {
    let pid = process.pid;
    let text = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).map_err(failed(format!("reading {path}")))
    };
    // What a ckptd that was killed has left is cleared up by asking.
    let calm = Room::find(pid as i32).is_ok_and(|room| room.is_none_or(|room| room.is_calm()));
    let waits = told::waits(pid, tracker);
    let told = match tracker.filter(|_| calm) {
        Some(tracker) => told::in_bulk(process, status, tracker)?,
        None => None,
    };
    let answers = match told {
        Some(told) => with_states(process, told)?,
        None => interview(process, status, timers::parse(&text("timers")?))?,
    };
    for Answer {
        tid,
        state,
        rseq,
        told,
    } in answers
    {
        let Some(thread) = process.threads.get(&tid) else {
            continue;
        };
        let robust = sys::robust_list(tid as i32)
            .map_err(failed(format!("reading the robust list of thread {tid}")))?;
        let sched = scheduling::capture(tid)
            .map_err(failed(format!("reading the scheduling of thread {tid}")))?;
        let pending = thread
            .task()?
            .pending_signals(false)
            .map_err(failed(format!("reading pending signals of thread {tid}")))?;
        let record_thread = Thread {
            tid: told.inner,
            name: told.name,
            registers: sys::registers_to_bytes(&state.registers),
            remaining: waits::remaining(
                tid,
                &state,
                thread.asleep_since,
                tracker.zip(waits.get(&tid)),
            ),
            xstate: state.xstate,
            blocked: state.mask,
            pending: pending.iter().map(|info| info.to_vec()).collect(),
            altstack: told.altstack,
            robust_list: robust.0,
            robust_list_len: robust.1,
            rseq,
            clear_child_tid: told.clear_child_tid,
            parent_death_signal: told.death_signal,
            credentials: Some(told.credentials),
            scheduling: Some(sched),
            timer_slack: told.timer_slack,
            place: told.place,
            personality: told.personality,
        };
        if let Some(told) = told.process {
            record.actions = told.actions;
            record.interval_timers = told.interval_timers;
            record.posix_timers = told.posix_timers;
            record.child_subreaper = told.child_subreaper;
            record.dumpable = told.dumpable;
            record.thp_disabled = told.thp_disabled;
            let pending = thread
                .task()?
                .pending_signals(true)
                .map_err(failed(format!("reading pending signals of process {pid}")))?;
            record.pending = pending.iter().map(|info| info.to_vec()).collect();
            let exe = match table.exe(pid)? {
                Ok(exe) => exe,
                Err((why, advice)) => {
                    refusals.push(Refusal {
                        pid,
                        what: "its executable".to_owned(),
                        why,
                        advice,
                    });
                    0
                }
            };
            let ours = process.lent.as_ref().map_or(0..0, Lent::range);
            let space = table.spaces.of(pid);
            let watched = table.spaces.is_watched(pid);
            let mut memory = maps::capture(pid, tracker, (space, watched), &ours, table, refusals)?;
            if !watched {
                maps::guards(pid, &mut memory.space.mappings, maps::EVERYWHERE)?;
            }
            memory.space.layout = Some(maps::layout(pid, stat, told.brk, exe)?);
            sources.push(Source::Process {
                space,
                pid,
                areas: memory.areas,
                runs: false,
            });
            record.memory = Some(memory.space);
            record.threads.insert(0, record_thread);
        } else {
            record.threads.push(record_thread);
        }
    }
    for timer in &mut record.posix_timers {
        if timer.tid != 0 {
            timer.tid = Status::read(timer.tid).map_or(timer.tid, |status| status.inner("NSpid"));
        }
    }
    record.descriptors = table.descriptors(pid, tracker, refusals)?;
    record.cwd = procfs::link(&format!("/proc/{pid}/cwd"))
        .map_err(failed(format!("reading /proc/{pid}/cwd")))?;
    record.root = procfs::link(&format!("/proc/{pid}/root"))
        .map_err(failed(format!("reading /proc/{pid}/root")))?;
    record.cwd_deleted = directory::is_deleted(&format!("/proc/{pid}/cwd"));
    if !record.cwd_deleted && !std::path::Path::new(&record.cwd).is_dir() {
        refusals.push(Refusal {
            pid,
            what: format!("its working directory ({})", record.cwd),
            why: "its path leads nowhere (another mount or namespace?)".to_owned(),
            advice: "checkpoint when the program works in a directory with a path".to_owned(),
        });
    }
    record.umask = status.octal("Umask");
    record.limits = limits::parse(&text("limits")?);
    record.oom_score_adj = text("oom_score_adj")?.trim().parse().unwrap_or(0);
    let _ = ids;
    Ok(())
}

/// Where a thread works that does not share this with its leader.
fn own_place(pid: u32, tid: u32, status: &Status) -> Result<Option<proto::Place>, CheckpointError> {
    let same = sys::compare(pid as i32, tid as i32, sys::Share::Fs, 0, 0);
    if tid == pid || same.is_ok_and(|order| order == std::cmp::Ordering::Equal) {
        return Ok(None);
    }
    place(pid, tid, status.octal("Umask")).map(Some)
}

/// Where a thread works.
pub(crate) fn place(pid: u32, tid: u32, umask: u32) -> Result<proto::Place, CheckpointError> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/task/{tid}/{name}");
        procfs::link(&path).map_err(failed(format!("reading {path}")))
    };
    Ok(proto::Place {
        cwd: read("cwd")?,
        root: read("root")?,
        umask,
        cwd_deleted: directory::is_deleted(&format!("/proc/{pid}/task/{tid}/cwd")),
    })
}

/// The name of a thread.
fn name(pid: u32, tid: u32) -> Vec<u8> {
    let mut name = std::fs::read(format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default();
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    name
}

/// What is known of a thread.
struct Answer {
    tid: u32,
    state: State,
    rseq: Option<proto::Rseq>,
    told: Told,
}

/// Adds the registers to what is told already.
fn with_states(
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
fn told(
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
        std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/personality")).unwrap_or_default();
    let of_process = |asked: ProcessQuestions| {
        let (interval_timers, posix_timers) = asked.timers.answers(outcome);
        ToldOfProcess {
            actions: asked.actions.answers(outcome),
            interval_timers,
            posix_timers,
            brk: outcome.results[asked.brk] as u64,
            child_subreaper: first_word(outcome.output(asked.subreaper)) as u32 != 0,
            dumpable: outcome.results[asked.dumpable].max(0) as u32,
            thp_disabled: outcome.results[asked.thp_disabled] == 1,
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
        process: questions.process.map(of_process),
    })
}

/// The stub's place for one thread, and what the thread goes back to.
pub(crate) struct Lending {
    pub(crate) tid: u32,
    pub(crate) slot: stub::Slot,
    pub(crate) state: State,
    pub(crate) rseq: Option<proto::Rseq>,
}

/// Lends the stub to the stopped threads of a process.
pub(crate) fn lend(
    process: &mut freeze::Process,
    status: &Status,
) -> Result<Vec<Lending>, CheckpointError> {
    let pid = process.pid;
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
    if !room.is_calm() && procfs::threads(pid).len() > process.threads.len() {
        return Err(CheckpointError::System {
            doing: format!("asking process {pid} alone"),
            source: std::io::Error::other("it may still be busy with a ckptd that was killed"),
        });
    }
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
    let others = process.threads.keys().filter(|&&tid| tid != pid);
    let others: HashMap<u32, Status> = others
        .filter_map(|&tid| Some((tid, Status::read(tid).ok()?)))
        .collect();
    let pending = others.values().map(|other| other.hex("SigPnd"));
    let pending = pending.fold(status.hex("SigPnd") | status.hex("ShdPnd"), |a, b| a | b);
    let signal = freeze::quiet_signal(status.hex("SigCgt"), pending);
    let inner_pid = status.inner("NSpid") as i32;
    let mut lendings = Vec::new();
    for (nth, (tid, state, rseq)) in states.into_iter().enumerate() {
        let Some(thread) = process.threads.get(&tid) else {
            continue;
        };
        let inner = if tid == pid {
            inner_pid
        } else {
            others.get(&tid).map_or(tid, |s| s.inner("NSpid")) as i32
        };
        let slot = lent.slot(nth, thread.task()?, (inner_pid, inner), signal, &state)?;
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
fn interview(
    process: &mut freeze::Process,
    status: &Status,
    mut known: Vec<proto::PosixTimer>,
) -> Result<Vec<Answer>, CheckpointError> {
    let pid = process.pid;
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
    let status = Status::read(pid).map_err(failed(format!("reading /proc/{pid}/status")))?;
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
fn no_room(pid: u32, error: RunError) -> CheckpointError {
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
fn refresh(
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
