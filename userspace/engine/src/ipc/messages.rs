//! System V message queues (msgget(2)).

use images::proto::{Credentials, IpcObject, Process, SystemVMessage, SystemVQueue};
use remote::Expect;
use remote::ipc::{self, Kind};

use super::{Host, Job, Line};
use crate::Refusal;
use crate::files::Shell;

/// Who has used it.
pub(super) fn users(line: &Line) -> Vec<u32> {
    let users = ["lspid", "lrpid"].map(|name| line.number(name) as u32);
    users.into_iter().filter(|&pid| pid != 0).collect()
}

/// The queues that are the job's.
pub(crate) fn capture(job: &Job<'_>, refusals: &mut Vec<Refusal>) -> Vec<SystemVQueue> {
    let advice =
        "checkpoint as its owner, or as root, under a kernel with CONFIG_CHECKPOINT_RESTORE";
    let read = |line: &Line, object| read(job, line, object);
    job.objects(Kind::Queue, users, read, ("messages", advice), refusals)
}

fn read(job: &Job<'_>, line: &Line, object: IpcObject) -> std::io::Result<SystemVQueue> {
    let mut messages = Vec::new();
    while let Some((r#type, data)) = ipc::message(object.id, messages.len())? {
        messages.push(SystemVMessage { r#type, data });
    }
    Ok(SystemVQueue {
        object: Some(object),
        capacity: ipc::capacity(object.id)?,
        messages,
        sender: job.inner(line.number("lspid") as u32),
    })
}

/// Makes a queue, empty, with room for what was in it.
pub(crate) fn make(
    shell: &mut Shell,
    process: &Process,
    known: (&Host, &Credentials),
    queue: &SystemVQueue,
) {
    let Some(object) = &queue.object else { return };
    super::make(
        shell,
        process,
        known,
        Kind::Queue,
        object,
        |program, label| {
            let args = [object.key.into(), super::creation(object).into()];
            let expect = Expect::Exactly(u64::from(object.id));
            program.call(libc::SYS_msgget, &args, expect, label);
        },
    );
    let held = queue
        .messages
        .iter()
        .map(|message| message.data.len() as u64);
    set(shell, object, queue.capacity.max(held.sum()));
}

/// Sends again what was in it.
pub(crate) fn fill(shell: &mut Shell, queue: &SystemVQueue) {
    let Some(object) = &queue.object else { return };
    for message in &queue.messages {
        let bytes = [&message.r#type.to_ne_bytes()[..], &message.data].concat();
        let bytes = shell.program.bytes(bytes);
        let args = [
            object.id.into(),
            bytes.into(),
            message.data.len().into(),
            libc::IPC_NOWAIT.into(),
        ];
        let label = format!("send {} bytes to queue {}", message.data.len(), object.id);
        shell.program.must(libc::SYS_msgsnd, &args, label);
    }
    set(shell, object, queue.capacity);
}

fn set(shell: &mut Shell, object: &IpcObject, capacity: u64) {
    // struct msqid64_ds, msg_qbytes
    let mut bytes = super::permissions(object, 120);
    bytes[88..96].copy_from_slice(&capacity.to_ne_bytes());
    let bytes = shell.program.bytes(bytes);
    let args = [object.id.into(), libc::IPC_SET.into(), bytes.into()];
    let label = "set its owner, permissions and capacity";
    shell.program.must(libc::SYS_msgctl, &args, label);
}
