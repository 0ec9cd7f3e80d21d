//! System V semaphores (semget(2)).

use images::proto::{Credentials, IpcObject, Process, Semaphore, SemaphoreSet};
use remote::Expect;
use remote::ipc::{self, Kind};
use tracker::Tracker;

use super::{Host, Job, Line, undo};
use crate::Refusal;
use crate::files::Shell;

// include/uapi/linux/sem.h
const SETVAL: u32 = 16;
const SETALL: u32 = 17;

/// How many semaphores there are, and who has used them.
pub(super) fn users(line: &Line) -> (u64, Vec<u32>) {
    let (id, count) = (line.id(Kind::Semaphores), line.number("nsems"));
    let users = (0..count as usize).filter_map(|nth| ipc::last_user(id, nth).ok());
    let mut users: Vec<u32> = users.filter(|&pid| pid != 0).collect();
    users.sort_unstable();
    users.dedup();
    (count, users)
}

/// The sets that are the job's.
pub(crate) fn capture(
    job: &Job<'_>,
    tracker: Option<&Tracker>,
    refusals: &mut Vec<Refusal>,
) -> Vec<SemaphoreSet> {
    let mut sets = job.objects(
        Kind::Semaphores,
        |line| users(line).1,
        |line, object| read(job, line, object),
        ("values", "checkpoint as its owner, or as root"),
        refusals,
    );
    if !sets.is_empty() {
        undo::capture(job, tracker, &mut sets, refusals);
    }
    sets
}

fn read(job: &Job<'_>, line: &Line, object: IpcObject) -> std::io::Result<SemaphoreSet> {
    let values = ipc::values(object.id, line.number("nsems") as usize)?;
    let mut semaphores = Vec::with_capacity(values.len());
    for (nth, value) in values.into_iter().enumerate() {
        let pid = job.inner(ipc::last_user(object.id, nth)?);
        semaphores.push(Semaphore {
            value: u32::from(value),
            pid,
        });
    }
    Ok(SemaphoreSet {
        object: Some(object),
        semaphores,
        operated: line.number("otime") != 0,
        undo: Vec::new(),
    })
}

/// Makes a set with its values.
pub(crate) fn make(
    shell: &mut Shell,
    process: &Process,
    known: (&Host, &Credentials),
    set: &SemaphoreSet,
) {
    let Some(object) = &set.object else { return };
    let count = set.semaphores.len();
    super::make(
        shell,
        process,
        known,
        Kind::Semaphores,
        object,
        |program, label| {
            let args = [
                object.key.into(),
                count.into(),
                super::creation(object).into(),
            ];
            let expect = Expect::Exactly(u64::from(object.id));
            program.call(libc::SYS_semget, &args, expect, label);
        },
    );
    let id = object.id;
    let program = &mut shell.program;
    if set.operated {
        // struct sembuf: waiting for zero, which it is, sets sem_otime and nothing else.
        let nothing = program.bytes([0; 6]);
        let args = [id.into(), nothing.into(), 1.into()];
        program.must(libc::SYS_semop, &args, "be used once");
    }
    let values = undo::before(set).into_iter();
    let values: Vec<u8> = values
        .flat_map(|value| (value as u16).to_ne_bytes())
        .collect();
    let values = program.bytes(values);
    let args = [id.into(), 0.into(), SETALL.into(), values.into()];
    program.must(libc::SYS_semctl, &args, "set its values");
    // struct semid64_ds
    let owner = program.bytes(super::permissions(object, 104));
    let args = [id.into(), 0.into(), libc::IPC_SET.into(), owner.into()];
    program.must(libc::SYS_semctl, &args, "set its owner and permissions");
}

/// Each semaphore was last changed by the one who did.
pub(crate) fn sign(shell: &mut Shell, process: &Process, set: &SemaphoreSet) {
    let Some(object) = &set.object else { return };
    if !set.undo.is_empty() {
        return undo::sign(shell, process, set);
    }
    let all = set.semaphores.iter().enumerate();
    for (nth, semaphore) in all.filter(|(_, semaphore)| semaphore.pid == process.pid) {
        let args = [
            object.id.into(),
            nth.into(),
            SETVAL.into(),
            semaphore.value.into(),
        ];
        let label = format!("have changed semaphore {nth} last");
        shell.program.must(libc::SYS_semctl, &args, label);
    }
}
