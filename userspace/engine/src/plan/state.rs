//! What processes and threads get once their memory and descriptors are there.

use images::proto::{Process, Snapshot, Thread};
use remote::Program;

use super::check::alive;
use super::memory::work_in;
use super::step::Step;
use crate::files::{Numbers, Shell};
use crate::host::Host;
use crate::{attributes, cpu, identity, limits, scheduling, seccomp, signals, timers};

const PR_SET_CHILD_SUBREAPER: u64 = 36;
const PR_SET_PDEATHSIG: u64 = 1;
const PR_SET_DUMPABLE: u64 = 4;
const PR_SET_NAME: u64 = 15;
const PR_SET_TIMERSLACK: u64 = 29;

fn prctl(program: &mut Program, operation: u64, value: u64, label: &str) {
    let args = [operation.into(), value.into(), 0.into(), 0.into(), 0.into()];
    program.must(libc::SYS_prctl, &args, label);
}

pub(super) fn process_state(
    shell: &mut Shell,
    process: &Process,
    snapshot: &Snapshot,
    host: &Host,
) {
    scheduling::set_autogroup(shell, process, &snapshot.processes);
    limits::write_own(shell, process, host);
    let program = &mut shell.program;
    program.try_call(libc::SYS_umask, &[process.umask.into()], "set the umask");
    signals::set_actions(program, &process.actions);
    timers::create(program, &process.posix_timers, host.timer_ids);
    if process.child_subreaper {
        prctl(program, PR_SET_CHILD_SUBREAPER, 1, "adopt orphans");
    }
    attributes::set(program, &process.attributes);
    limits::set(program, &process.limits, &host.limits);
}

/// Everybody's further threads; and who has ended ends again, now that nobody is forked any more.
pub(super) fn threads_and_zombies(snapshot: &Snapshot) -> impl Iterator<Item = Step> {
    let processes = snapshot.processes.iter();
    let threads = processes.clone().filter(alive).flat_map(|process| {
        let pid = process.pid;
        let further = process.threads.iter().skip(1);
        further.map(move |thread| Step::Thread {
            pid,
            tid: thread.tid,
        })
    });
    let zombies = processes.filter(|process| !alive(process));
    threads.chain(zombies.map(|process| Step::Zombie {
        pid: process.pid,
        wait_status: process.wait_status,
    }))
}

/// Before filters of system calls are put in force.
pub(super) fn suspended_filters(snapshot: &Snapshot) -> impl Iterator<Item = Step> {
    let confined = |process: &&Process| seccomp::confines(process);
    let confined = snapshot.processes.iter().filter(confined);
    confined.map(|process| Step::Suspend { pid: process.pid })
}

pub(super) fn thread_states(snapshot: &Snapshot, host: &Host) -> impl Iterator<Item = Step> {
    let alive = snapshot.processes.iter().filter(alive);
    alive.flat_map(move |process| {
        process.threads.iter().map(move |thread| Step::Run {
            pid: process.pid,
            tid: thread.tid,
            what: "set the state of the thread",
            program: thread_state(process, thread, snapshot, host),
        })
    })
}

/// Last of all, so that no timer has gone off when the job goes on.
pub(super) fn signals_and_timers(program: &mut Program, process: &Process) {
    signals::drain(program);
    signals::queue(
        program,
        process.pid,
        0,
        &process.pending,
        &process.posix_timers,
    );
    let pending = || {
        let of_threads = process.threads.iter().flat_map(|thread| &thread.pending);
        process.pending.iter().chain(of_threads)
    };
    let is_pending = |timer: &_| pending().any(|info| signals::is_from(info, timer));
    timers::arm(
        program,
        &process.interval_timers,
        &process.posix_timers,
        &is_pending,
    );
}

fn thread_state(process: &Process, thread: &Thread, snapshot: &Snapshot, host: &Host) -> Program {
    let mut program = Program::new();
    let online = snapshot.host.as_ref().map_or(0, |host| host.cpus);
    let label = format!("be called {}", String::from_utf8_lossy(&thread.name));
    let name = program.bytes([&thread.name[..], &[0]].concat());
    program.must(libc::SYS_prctl, &[PR_SET_NAME.into(), name.into()], label);
    program.try_call(
        libc::SYS_set_tid_address,
        &[thread.clear_child_tid.into()],
        "set clear_child_tid",
    );
    if let Some(place) = &thread.place {
        program.must(
            libc::SYS_unshare,
            &[libc::CLONE_FS.into()],
            "have a working directory of its own",
        );
        let numbers = Numbers::default();
        let mut shell = Shell { program, numbers };
        work_in(&mut shell, &place.cwd, place.cwd_deleted, &place.root);
        program = shell.program;
        program.try_call(libc::SYS_umask, &[place.umask.into()], "set the umask");
    }
    if thread.robust_list != 0 {
        let args = [thread.robust_list.into(), thread.robust_list_len.into()];
        program.must(
            libc::SYS_set_robust_list,
            &args,
            "register the robust futex list",
        );
    }
    cpu::set_rseq(&mut program, thread);
    signals::set_altstack(&mut program, thread);
    if let Some(wanted) = &thread.scheduling {
        scheduling::set(&mut program, wanted, &host.scheduling, online);
    }
    if thread.timer_slack != 0 {
        prctl(
            &mut program,
            PR_SET_TIMERSLACK,
            thread.timer_slack,
            "set the timer slack",
        );
    }
    program.try_call(
        libc::SYS_personality,
        &[thread.personality.into()],
        "set the personality",
    );
    signals::queue(
        &mut program,
        process.pid,
        thread.tid,
        &thread.pending,
        &process.posix_timers,
    );
    attributes::set(&mut program, &thread.attributes);
    // Which takes rights that are about to go.
    seccomp::confine(&mut program, process, thread, &snapshot.filters);
    if let Some(wanted) = &thread.credentials {
        // What `assume_files` changed counts as ours for the comparison; it only ever takes away.
        identity::assume(&mut program, wanted, &host.credentials);
    }
    // Changing ids resets these two.
    if thread.tid == process.pid && process.dumpable <= 1 {
        prctl(
            &mut program,
            PR_SET_DUMPABLE,
            u64::from(process.dumpable),
            "set dumpable",
        );
    }
    if thread.parent_death_signal != 0 {
        prctl(
            &mut program,
            PR_SET_PDEATHSIG,
            u64::from(thread.parent_death_signal),
            "set the parent-death signal",
        );
    }
    program
}
