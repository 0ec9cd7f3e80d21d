//! The stub in a running process: calls work, nothing is left behind, and our death at any step harms nothing.
#![allow(missing_docs)]

use std::process::{Child, Command, Stdio};

use remote::live::{self, Lent, Room, State};
use remote::{Expect, Program, Running, Stopped, stub};

/// A process asleep for ever.
fn victim() -> Child {
    let child = Command::new("sleep")
        .arg("1000")
        .stdout(Stdio::null())
        .spawn()
        .expect("sleep");
    assert!(comes_to_sleep(child.id() as i32, &["35", "230"]));
    child
}

/// Whether the process is, within two seconds, asleep in one of these system calls.
fn comes_to_sleep(pid: i32, calls: &[&str]) -> bool {
    (0..2000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        calls.iter().any(|nr| call.split(' ').next() == Some(nr))
    })
}

fn seize(pid: i32) -> Stopped {
    live::stop(Running::seize(pid, remote::task::FOLLOW).expect("seize")).expect("stop")
}

fn state(task: &Stopped) -> State {
    let registers = task.registers().expect("registers");
    State {
        registers,
        call: Some(registers.orig_rax),
        mask: task.signal_mask().expect("mask"),
        xstate: task.xstate().expect("xstate"),
    }
}

fn program() -> (Program, remote::Blob) {
    let mut program = Program::new();
    let out = program.output(4096);
    program.must(libc::SYS_getpid, &[], "getpid");
    program.call(
        libc::SYS_getcwd,
        &[out.into(), 4096.into()],
        Expect::Anything,
        "getcwd",
    );
    let fd = program.must(libc::SYS_dup, &[1.into()], "dup");
    program.must(libc::SYS_close, &[remote::Arg::Result(fd)], "close");
    (program, out)
}

fn maps(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps")
}

#[test]
fn calls_run_and_nothing_is_left() {
    let mut child = victim();
    let pid = child.id() as i32;
    let before = maps(child.id());
    let room = Room::find(pid).expect("maps").expect("room");
    let task = seize(pid);
    let way_back = state(&task);
    let (task, lent) = Lent::install(task, room, 1, way_back.xstate.len()).expect("install");
    let slot = lent
        .slot(0, &task, (pid, pid), libc::SIGURG, &way_back)
        .expect("slot");
    let (program, out) = program();
    let (task, outcome) = stub::run(slot, &program, task, &mut |_| {}).expect("run");
    assert_eq!(outcome.results[0], i64::from(pid));
    assert_eq!(outcome.output(out)[0], b'/');
    task.set_signal_mask(way_back.mask).expect("mask");
    task.set_registers(&way_back.registers).expect("registers");
    let task = lent.remove(task).expect("remove");
    task.detach(0).expect("detach");
    assert_eq!(maps(child.id()), before);
    // Back in the very same sleep: the kernel continues it through restart_syscall.
    assert!(comes_to_sleep(pid, &["219"]));
    child.kill().expect("kill");
    child.wait().expect("wait");
}

/// A ckptd that lends its stub to the process and dies after so many steps.
fn die_after(step: u32, pid: i32, program: Program) {
    // A tracer's end is its thread's end.
    let tracer = move || {
        let task = seize(pid);
        if step == 0 {
            return;
        }
        let way_back = state(&task);
        let room = Room::find(pid).expect("maps").expect("room");
        let (task, lent) = Lent::install(task, room, 1, way_back.xstate.len()).expect("install");
        if step == 1 {
            return;
        }
        let slot = lent
            .slot(0, &task, (pid, pid), libc::SIGURG, &way_back)
            .expect("slot");
        let mut run = stub::Run::new(slot, &program);
        let running = run.start(task).expect("start").expect("something to run");
        if step == 2 {
            return;
        }
        let task = run.finish(running, &mut |_| {}).expect("finish");
        task.set_signal_mask(!0).expect("mask");
        if step == 3 {
            return;
        }
        task.set_signal_mask(way_back.mask).expect("mask");
        task.set_registers(&way_back.registers).expect("registers");
        let _gone_with_this_thread = lent.remove(task).expect("remove");
    };
    std::thread::spawn(tracer).join().expect("tracer");
}

#[test]
fn our_death_at_any_step_leaves_the_task_as_it_was() {
    for step in 0..5 {
        let mut child = victim();
        let pid = child.id() as i32;
        let before = maps(child.id());
        die_after(step, pid, program().0);
        assert!(comes_to_sleep(pid, &["35", "230", "219"]), "step {step}");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let blocked = status
            .lines()
            .find(|l| l.starts_with("SigBlk"))
            .unwrap_or_default()
            .to_owned();
        assert!(
            blocked.ends_with("0000000000000000"),
            "step {step}: {blocked}"
        );
        assert_eq!(
            Room::find(pid).expect("maps").expect("room").is_calm(),
            [0, 4].contains(&step)
        );
        // The next one clears up behind it.
        die_after(4, pid, program().0);
        assert!(comes_to_sleep(pid, &["35", "230", "219"]), "step {step}");
        assert_eq!(maps(child.id()), before, "step {step}");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
}

#[test]
fn a_task_still_in_the_stub_of_a_dead_tracer_is_brought_back_first() {
    let mut child = victim();
    let pid = child.id() as i32;
    let original = seize(pid);
    let registers = original.registers().expect("registers");
    original.detach(0).expect("detach");
    assert!(comes_to_sleep(pid, &["35", "230", "219"]));
    let mut program = Program::new();
    let time = program.words(&[0, 300_000_000]);
    program.must(libc::SYS_nanosleep, &[time.into(), 0.into()], "sleep");
    die_after(2, pid, program);
    let task = seize(pid);
    let room = Room::find(pid).expect("maps").expect("room");
    let inside = task.registers().expect("registers").rip;
    assert_ne!(inside, registers.rip, "it was gone too early");
    let task = room.run_out(task).expect("run out");
    let now = task.registers().expect("registers");
    assert_eq!((now.rsp, now.rdi), (registers.rsp, registers.rdi));
    assert!([registers.rip, registers.rip - 2].contains(&now.rip));
    assert_eq!(task.signal_mask().expect("mask"), 0);
    task.detach(0).expect("detach");
    assert!(comes_to_sleep(pid, &["35", "230"]));
    child.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn a_stop_signal_meanwhile_stops_the_process_afterwards() {
    let mut child = victim();
    let pid = child.id() as i32;
    let task = seize(pid);
    let way_back = state(&task);
    let room = Room::find(pid).expect("maps").expect("room");
    let (task, lent) = Lent::install(task, room, 1, way_back.xstate.len()).expect("install");
    let slot = lent
        .slot(0, &task, (pid, pid), libc::SIGURG, &way_back)
        .expect("slot");
    remote::sys::kill(pid, libc::SIGSTOP).expect("kill");
    let (task, outcome) = stub::run(slot, &program().0, task, &mut |_| {}).expect("run");
    assert_eq!(outcome.results[0], i64::from(pid));
    task.set_signal_mask(way_back.mask).expect("mask");
    task.set_registers(&way_back.registers).expect("registers");
    lent.remove(task)
        .expect("remove")
        .detach(0)
        .expect("detach");
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stops = (0..2000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        stat().contains(") T ")
    });
    assert!(stops, "{}", stat());
    child.kill().expect("kill");
    child.wait().expect("wait");
}
