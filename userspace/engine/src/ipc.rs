//! System V objects (sysvipc(7)): which ones are the job's, and making them again under the ids they had.
//!
//! They belong to the host, not to processes, and outlive them: those that a dead job has left are in the way of its restore, and are
//! replaced by what the image says. Whether an object is one of those is told from its key, owner and size, and from who has used it.

use images::proto::{Credentials, IpcObject, Process, Snapshot, SystemVQueue};
use remote::Program;
pub(crate) use remote::ipc::Kind;

use crate::files::Shell;
use crate::plan::{Stages, Step};

mod host;
mod job;
mod list;
pub(crate) mod messages;
pub(crate) mod segments;
pub(crate) mod semaphores;
pub(crate) mod undo;

use host::wanted;
pub(crate) use host::{Host, check};
pub(crate) use job::Job;
use list::table;
pub(crate) use list::{Line, list};

/// What a person calls it.
fn name(kind: Kind, object: &IpcObject) -> String {
    let kind = match kind {
        Kind::Segment => "shared memory segment",
        Kind::Semaphores => "semaphore set",
        Kind::Queue => "message queue",
    };
    format!("System V {kind} {} (key {:#x})", object.id, object.key)
}

/// Objects that a restore makes, by their ids.
fn made(snapshot: &Snapshot, host: &Host) -> Vec<(Kind, u32)> {
    let made = wanted(snapshot).filter(|wanted| !host.keeps(wanted));
    made.map(|wanted| (wanted.kind, wanted.object.id)).collect()
}

/// Makes and fills semaphores and queues; segments are made with the rest of shared memory.
pub(crate) fn rebuild(stages: &mut Stages<'_>, snapshot: &Snapshot, known: (&Host, &Credentials)) {
    let lasting = made(snapshot, known.0);
    let makes = |kind, object: Option<&IpcObject>| {
        object.is_some_and(|object| lasting.contains(&(kind, object.id)))
    };
    let first = stages.processes.first().map_or(0, |process| process.pid);
    stages.stage("make semaphores and queues", |shell, process| {
        if process.pid != first {
            return;
        }
        for set in &snapshot.semaphores {
            if makes(Kind::Semaphores, set.object.as_ref()) {
                semaphores::make(shell, process, known, set);
            }
        }
        for queue in &snapshot.queues {
            if makes(Kind::Queue, queue.object.as_ref()) {
                messages::make(shell, process, known, queue);
            }
        }
    });
    stages.extend(lasting.iter().map(|&(kind, id)| Step::Left { kind, id }));
    let alive: Vec<u32> = stages.processes.iter().map(|p| p.pid).collect();
    let sender = |queue: &SystemVQueue| {
        if alive.contains(&queue.sender) {
            queue.sender
        } else {
            first
        }
    };
    undo::rebuild(stages, snapshot);
    stages.stage("fill semaphores and queues", |shell, process| {
        for set in &snapshot.semaphores {
            semaphores::sign(shell, process, set);
        }
        for queue in &snapshot.queues {
            if sender(queue) == process.pid {
                messages::fill(shell, queue);
            }
        }
    });
}

/// Makes an object with its id, as the user who did. `call` makes it, given its key and the mode to make it with.
fn make(
    shell: &mut Shell,
    process: &Process,
    (host, ours): (&Host, &Credentials),
    kind: Kind,
    object: &IpcObject,
    call: impl FnOnce(&mut Program, &str),
) {
    for present in host.in_the_way(kind, object) {
        let id = present.object.id;
        let (nr, args) = remove(kind, id);
        let label = format!(
            "remove what the job has left of {}",
            name(kind, &present.object)
        );
        shell.program.must(nr, &args, label);
    }
    let path = format!("/proc/sys/kernel/{}_next_id", table(kind));
    let fd = shell.open_path(&path, libc::O_WRONLY as u32);
    let text = object.id.to_string();
    let blob = shell.program.bytes(text.as_bytes());
    let args = [fd.into(), blob.into(), text.len().into()];
    shell
        .program
        .must(libc::SYS_write, &args, format!("choose id {text}"));
    shell.close(fd);
    let creator = (object.creator_uid, object.creator_gid);
    crate::identity::as_user(shell, process, ours, creator, |shell| {
        call(&mut shell.program, &format!("make {}", name(kind, object)));
    });
}

/// IPC_RMID, as a call.
fn remove(kind: Kind, id: u32) -> (i64, [remote::Arg; 3]) {
    let command = libc::IPC_RMID;
    match kind {
        Kind::Segment => (libc::SYS_shmctl, [id.into(), command.into(), 0.into()]),
        Kind::Semaphores => (libc::SYS_semctl, [id.into(), 0.into(), command.into()]),
        Kind::Queue => (libc::SYS_msgctl, [id.into(), command.into(), 0.into()]),
    }
}

/// The mode it is made with, and the flags of a new object.
fn creation(object: &IpcObject) -> u32 {
    (libc::IPC_CREAT | libc::IPC_EXCL) as u32 | object.mode
}

/// `struct ipc64_perm` at the head of what IPC_SET takes, of which owner and mode matter, `size` bytes in all.
fn permissions(object: &IpcObject, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (at, value) in [(4, object.uid), (8, object.gid), (20, object.mode)] {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}
