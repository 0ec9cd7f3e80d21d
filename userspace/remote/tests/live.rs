//! The stub in a running process: calls work, nothing is left behind, and our death at any step harms nothing.
#![allow(missing_docs)]

use std::process::{Child, Command, Stdio};

use remote::live::{self, Lent, State};
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
    State {
        registers: task.registers().expect("registers"),
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
    let room = live::find_room(pid).expect("maps").expect("room");
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
    let task = lent.remove(task).expect("remove");
    task.set_registers(&way_back.registers).expect("registers");
    task.detach(0).expect("detach");
    assert_eq!(maps(child.id()), before);
    // Back in the very same sleep: the kernel continues it through restart_syscall.
    assert!(comes_to_sleep(pid, &["219"]));
    child.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn our_death_at_any_step_leaves_the_task_as_it_was() {
    for step in 0..5 {
        let mut child = victim();
        let pid = child.id() as i32;
        let room = live::find_room(pid).expect("maps").expect("room");
        // A tracer's end is its thread's end.
        std::thread::spawn(move || {
            let task = seize(pid);
            if step == 0 {
                return;
            }
            let way_back = state(&task);
            let (task, lent) =
                Lent::install(task, room, 1, way_back.xstate.len()).expect("install");
            if step == 1 {
                return;
            }
            let slot = lent
                .slot(0, &task, (pid, pid), libc::SIGURG, &way_back)
                .expect("slot");
            let (program, _) = program();
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
            task.set_registers(&way_back.registers).expect("registers");
            task.set_signal_mask(way_back.mask).expect("mask");
            let _gone_with_this_thread = lent.remove(task).expect("remove");
        })
        .join()
        .expect("tracer");
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
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
}
