//! Plans for jobs that never ran: what a restore would do, in which order, and what it would refuse.

use std::collections::BTreeMap;

use images::proto::open_file::Kind as FileKind;
use images::proto::process::State;
use images::proto::{
    AddressSpace, Descriptor, Mapping, MmLayout, OpenFile, Process, Regular, Snapshot, Thread,
};

use super::{Step, make};
use crate::host::Host;
use crate::{FilesPolicy, TcpPolicy};

/// A process of one thread with a page at 64 KiB.
fn process(pid: u32, ppid: u32) -> Process {
    Process {
        pid,
        ppid,
        exit_signal: 17,
        threads: vec![thread(pid)],
        memory: Some(AddressSpace {
            mappings: vec![Mapping {
                start: 0x1_0000,
                end: 0x1_1000,
                ..Default::default()
            }],
            layout: Some(MmLayout::default()),
            ..Default::default()
        }),
        cwd: "/".to_owned(),
        root: "/".to_owned(),
        ..Default::default()
    }
}

fn thread(tid: u32) -> Thread {
    let registers = size_of::<libc::user_regs_struct>();
    Thread {
        tid,
        name: b"job".to_vec(),
        registers: vec![0; registers],
        ..Default::default()
    }
}

fn job(processes: Vec<Process>) -> Snapshot {
    Snapshot {
        root: processes[0].pid,
        processes,
        ..Default::default()
    }
}

fn host() -> Host {
    Host {
        pid_max: 4096,
        ..Default::default()
    }
}

fn plan(snapshot: &Snapshot, taken: &[u32]) -> Result<super::Plan, Vec<crate::Refusal>> {
    let taken = |id: u32| taken.contains(&id);
    let policies = (FilesPolicy::Truncate, TcpPolicy::Refuse);
    make(snapshot, &BTreeMap::new(), &host(), policies, &taken)
}

/// Where the first step is that reads so.
fn position(plan: &super::Plan, line: &str) -> usize {
    let lines = plan.lines();
    let found = lines.iter().position(|other| other == line);
    found.unwrap_or_else(|| panic!("no step '{line}' in:\n{}", lines.join("\n")))
}

#[test]
fn processes_are_there_before_their_memory_and_run_last() {
    let plan = plan(&job(vec![process(10, 0), process(11, 10)]), &[]).unwrap();
    let order = [
        "make process 10",
        "process 10: fork 11",
        "process 11: map memory",
        "write all pages to their places",
        "process 11: set the state of the thread",
        "set all registers and let everything run",
    ];
    let places = order.map(|line| position(&plan, line));
    assert!(places.is_sorted(), "{places:?}");
    assert!(!plan.namespace());
}

#[test]
fn threads_start_when_memory_is_there() {
    let mut root = process(10, 0);
    root.threads.push(thread(12));
    let plan = plan(&job(vec![root]), &[]).unwrap();
    let start = position(&plan, "process 10: start thread 12");
    assert!(position(&plan, "write all pages to their places") < start);
    assert!(start < position(&plan, "thread 12: set the state of the thread"));
}

#[test]
fn ids_that_are_taken_need_a_namespace() {
    let mut root = process(10, 0);
    root.threads.push(thread(12));
    let job = job(vec![root]);
    for taken in [10, 12] {
        assert!(plan(&job, &[taken]).unwrap().namespace());
    }
    assert!(!plan(&job, &[11]).unwrap().namespace());
    // Above the highest the host gives.
    let beyond = plan(&self::job(vec![process(5000, 0)]), &[]);
    assert!(beyond.unwrap().namespace());
}

#[test]
fn a_zombie_ends_again_and_gets_nothing_else() {
    let mut zombie = process(11, 10);
    zombie.set_state(State::Zombie);
    (zombie.memory, zombie.wait_status) = (None, 0x300);
    let plan = plan(&job(vec![process(10, 0), zombie]), &[]).unwrap();
    let of_it = |step: &&Step| matches!(step, Step::Run { pid: 11, .. });
    assert_eq!(plan.steps.iter().filter(of_it).count(), 0);
    position(&plan, "process 11: end again (wait status 0x300)");
}

#[test]
fn one_file_held_twice_is_opened_once() {
    let descriptor = |fd| Descriptor {
        fd,
        file: 1,
        ..Default::default()
    };
    let (mut root, mut child) = (process(10, 0), process(11, 10));
    root.descriptors = vec![descriptor(3), descriptor(7)];
    child.descriptors = vec![descriptor(3)];
    let mut job = job(vec![root, child]);
    job.files = vec![OpenFile {
        id: 1,
        kind: Some(FileKind::Regular(Regular {
            path: "/proc/self/status".to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    }];
    let plan = plan(&job, &[]).unwrap();
    let lines = plan.lines();
    let opens = lines
        .iter()
        .filter(|line| line.contains("/proc/self/status"));
    assert_eq!(opens.count(), 1, "{}", lines.join("\n"));
}

#[test]
fn addresses_of_ours_are_none_of_the_jobs() {
    let mut root = process(10, 0);
    let memory = root.memory.as_mut().unwrap();
    memory.mappings.push(Mapping {
        start: 1 << 32,
        end: 1 << 40,
        ..Default::default()
    });
    let plan = plan(&job(vec![root]), &[]).unwrap();
    assert!(plan.block.base >= 1 << 40);
}

#[test]
fn images_that_contradict_themselves_are_refused() {
    type Damage = fn(&mut Snapshot);
    let damages: [(&str, Damage); 7] = [
        ("its threads", |job| job.processes[0].threads.clear()),
        ("its ids", |job| job.processes[1] = process(10, 0)),
        ("its parent", |job| job.processes[1].ppid = 99),
        ("its memory", |job| job.processes[1].memory = None),
        ("its mappings", |job| {
            let memory = job.processes[0].memory.as_mut().unwrap();
            memory.mappings[0].end = 0x1_0800;
        }),
        ("its files", |job| {
            job.processes[0].descriptors = vec![Descriptor {
                fd: 3,
                file: 9,
                ..Default::default()
            }];
        }),
        ("its registers", |job| {
            job.processes[0].threads[0].registers.pop();
        }),
    ];
    for (what, damage) in damages {
        let mut job = job(vec![process(10, 0), process(11, 10)]);
        damage(&mut job);
        let refusals = plan(&job, &[]).unwrap_err();
        let named = refusals.iter().any(|refusal| refusal.what == what);
        assert!(named, "{what}: {refusals:?}");
    }
}
