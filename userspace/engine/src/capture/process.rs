//! One process that is alive.

use images::proto::{self, Process, Thread};
use remote::live::Lent;
use remote::sys;
use tracker::Tracker;

use super::answers::{Answer, with_states};
use super::gather::Living;
use super::lending::interview;
use crate::files::{Table, Why, directory};
use crate::freeze::{self, failed};
use crate::pages::Source;
use crate::procfs::{Stat, Status};
use crate::told;
use crate::{
    CheckpointError, Refusal, areas, attributes, cgroup, cpu, dispatch, maps, procfs, scheduling,
    seccomp, timers, waits,
};

/// Captures one process that is not a zombie. `status` and `stat` are those of the thread that speaks for it.
pub(super) fn one(
    process: &mut freeze::Process,
    tracker: Option<&Tracker>,
    status: &Status,
    stat: &Stat,
    starter: u32,
    gathered: Living,
    record: &mut Process,
    table: &mut Table,
    refusals: &mut Vec<Refusal>,
    sources: &mut Vec<Source>,
) -> Result<(), CheckpointError> {
    let pid = process.speaker();
    let ended = pid != process.pid;
    // The iterators begin with the leader.
    let tracker = tracker.filter(|_| !ended);
    let text = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        sys::read_text(&path).map_err(failed(format!("reading {path}")))
    };
    if gathered.threads.iter().any(|thread| thread.confined) {
        let why =
            "it is confined by Landlock (landlock(7)), and nobody can read what it is allowed";
        let advice = "start the program without its sandbox";
        let why = (why.to_owned(), advice.to_owned());
        refusals.push(refusal(pid, "its Landlock domain", why));
    }
    let waits = told::waits(&gathered.threads);
    // What a ckptd that was killed has left is cleared up by asking.
    let told = if gathered.calm {
        told::in_bulk(process, status, gathered.threads)?
    } else {
        None
    };
    let answers = match told {
        Some(told) => with_states(process, told)?,
        None => interview(process, status, timers::parse(&text("timers")?))?,
    };
    let mut areas = gathered.areas;
    if !gathered.calm || (process.lent.is_some() && locks_new(pid, status)) {
        areas = areas::of(pid, tracker, &mut Default::default())?;
    }
    for &tid in process.threads.keys().filter(|tid| **tid != pid) {
        let same = sys::compare(pid as i32, tid as i32, sys::Share::Descriptors, 0, 0);
        if same.is_ok_and(|order| order != std::cmp::Ordering::Equal) {
            let why = "it has a descriptor table of its own (unshare(2)), which is not supported";
            let advice = "use a process of its own, or share descriptors".to_owned();
            let what = format!("its thread {tid}");
            refusals.push(refusal(pid, &what, (why.to_owned(), advice)));
        }
    }
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
        if cpu::has_protection_keys(&state.xstate) {
            let why = "it uses protection keys (pkey_alloc(2)), which are not supported".to_owned();
            let advice = "start the program without what uses them".to_owned();
            refusals.push(refusal(pid, "its protection keys", (why, advice)));
        }
        if let Some(whose) = told.keys {
            let why = format!(
                "the keyring of its {whose} has keys (keyctl(1)), which cannot be made again with their serial numbers"
            );
            let advice = match whose {
                "session" => {
                    "run ckptd in the same session, or start the job in one without keys (keyctl session)"
                }
                _ => "let the program keep its keys elsewhere",
            };
            refusals.push(refusal(pid, "its keys", (why, advice.to_owned())));
        }
        let filters = seccomp::capture(thread.task()?, told.seccomp, &mut table.filters);
        let (filters, strict) = filters.unwrap_or_else(|why| {
            refusals.push(refusal(pid, "its seccomp filter", why));
            Default::default()
        });
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
            ended: None,
            filters,
            strict,
            dispatch: dispatch::capture(thread),
            attributes: told.attributes,
        };
        if let Some(told) = told.process {
            record.actions = told.actions;
            record.interval_timers = told.interval_timers;
            record.posix_timers = told.posix_timers;
            record.child_subreaper = told.child_subreaper;
            record.dumpable = told.dumpable;
            record.thp_disabled = told.thp_disabled;
            refusals.extend(attributes::check(pid, &told.attributes));
            record.attributes = told.attributes;
            let pending = thread
                .task()?
                .pending_signals(true)
                .map_err(failed(format!("reading pending signals of process {pid}")))?;
            record.pending = pending.iter().map(|info| info.to_vec()).collect();
            let exe = match table.exe(pid)? {
                Ok(exe) => exe,
                Err(why) => {
                    refusals.push(refusal(pid, "its executable", why));
                    0
                }
            };
            let ours = process.lent.as_ref().map_or(0..0, Lent::range);
            let space = table.spaces.of(pid);
            let watched = table.spaces.is_watched(pid);
            // A child inherits the userfaultfd of a lazy restore.
            let by_us = watched || table.spaces.sockets.is_some();
            let areas = std::mem::take(&mut areas);
            let mut memory = maps::capture(pid, areas, (space, by_us), &ours, table, refusals)?;
            if !watched {
                maps::guards(pid, &mut memory.space.mappings, maps::EVERYWHERE)?;
            }
            record.attributes.extend(memory.locked.take());
            let layout = maps::layout(pid, stat, told.brk, exe)?;
            maps::lay_out(&mut memory.space, layout);
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
    if ended {
        let speaker = record.threads.first().cloned().unwrap_or_default();
        let leader = process.pid;
        let stat = Stat::read(leader).map_err(failed(format!("reading /proc/{leader}/stat")))?;
        record.threads.insert(
            0,
            Thread {
                tid: record.pid,
                name: name(leader, leader),
                credentials: speaker.credentials,
                ended: Some(proto::Ended {
                    wait_status: stat.field(52) as u32,
                }),
                ..Default::default()
            },
        );
    }
    for timer in &mut record.posix_timers {
        if timer.tid != 0 {
            timer.tid = Status::read(timer.tid).map_or(timer.tid, |status| status.inner("NSpid"));
        }
    }
    record.descriptors = table.descriptors(pid, gathered.descriptors, refusals)?;
    record.cwd = gathered.cwd;
    record.root = gathered.root;
    record.cwd_deleted = gathered.cwd_deleted;
    if !record.cwd_deleted && !std::path::Path::new(&record.cwd).is_dir() {
        refusals.push(Refusal {
            pid,
            what: format!("its working directory ({})", record.cwd),
            why: "its path leads nowhere (another mount or namespace?)".to_owned(),
            advice: "checkpoint when the program works in a directory with a path".to_owned(),
        });
    }
    record.cgroups = cgroup::capture(pid, starter);
    record.umask = status.octal("Umask");
    record.limits = gathered.limits;
    record.autogroup = scheduling::autogroup(pid);
    record.oom_score_adj = gathered.oom_score_adj;
    record.coredump_filter = gathered.coredump_filter;
    Ok(())
}

fn refusal(pid: u32, what: &str, (why, advice): Why) -> Refusal {
    Refusal {
        pid,
        what: what.to_owned(),
        why,
        advice,
    }
}

/// Whether the mapping that we have made in the process since `before` was locked as it came (mlockall(2)).
fn locks_new(pid: u32, before: &Status) -> bool {
    Status::read(pid).is_ok_and(|now| now.number("VmLck") > before.number("VmLck"))
}

/// Where a thread works that does not share this with its leader.
pub(super) fn own_place(
    pid: u32,
    tid: u32,
    status: &Status,
) -> Result<Option<proto::Place>, CheckpointError> {
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
pub(super) fn name(pid: u32, tid: u32) -> Vec<u8> {
    let mut name = sys::read_file(format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default();
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    name
}
