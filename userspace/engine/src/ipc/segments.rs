//! System V shared memory (shmget(2)). The content is an object's (`files/object.rs`); here are its id and its attachments.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;

use images::PAGE_SIZE;
use images::proto::mapping::Kind as Mapped;
use images::proto::{Credentials, Mapping, Process, Segment, SharedMemory};
use remote::Expect;
use remote::ipc::{Attached, Kind};

use super::{Job, Line};
use crate::Refusal;
use crate::areas::{Area, has};
use crate::files::{Shell, Table};

// include/uapi/linux/shm.h
const SHM_DEST: u64 = 0o1000;
const SHM_LOCKED: u64 = 0o2000;
const SHM_HUGETLB: u32 = 0o4000;

/// Whether a mapping is of a segment: the kernel shows it as a deleted file, its id as the inode (ipc/shm.c, newseg).
pub(crate) fn is(area: &Area) -> bool {
    area.shared()
        && area.device.0 == 0
        && area.path.starts_with("/SYSV")
        && line(area.inode).is_some()
}

fn line(id: u64) -> Option<Line> {
    super::list(Kind::Segment)
        .into_iter()
        .find(|line| line.number("shmid") == id)
}

/// The record of a segment, by the inode of what was mapped.
pub(crate) fn describe(inode: u64) -> Option<Segment> {
    let line = line(inode)?;
    Some(Segment {
        object: Some(line.object(Kind::Segment)),
        creator: line.number("cpid") as u32,
        removed: line.number("perms") & SHM_DEST != 0,
        locked: line.number("perms") & SHM_LOCKED != 0,
    })
}

/// Finds the segments that nobody is attached to, and those that others are attached to.
pub(crate) fn capture(table: &mut Table, job: &Job<'_>, refusals: &mut Vec<Refusal>) {
    let mut attached: HashMap<u32, u64> = HashMap::new();
    let mappings = job.processes.iter().filter_map(|p| p.memory.as_ref());
    for mapping in mappings.flat_map(|memory| &memory.mappings) {
        if mapping.kind() == Mapped::AnonymousShared {
            *attached.entry(mapping.file).or_default() += 1;
        }
    }
    for line in super::list(Kind::Segment) {
        let object = line.object(Kind::Segment);
        let (what, creator) = (
            super::name(Kind::Segment, &object),
            line.number("cpid") as u32,
        );
        let is_this = |shared: &&SharedMemory| {
            let segment = shared
                .segment
                .as_ref()
                .and_then(|segment| segment.object.as_ref());
            segment.is_some_and(|segment| segment.id == object.id)
        };
        let known = table.shared.iter().find(is_this).map(|shared| shared.id);
        let ours = known.and_then(|id| attached.get(&id)).copied().unwrap_or(0);
        if known.is_none() && !(job.members.contains_key(&creator) && line.is_by(creator)) {
            continue;
        }
        if line.number("nattch") > ours {
            let why = "a process outside of the job is attached to it too".to_owned();
            let advice = "`ipcs -mp` tells who; checkpoint that process together with the job (start both under `ckptd run`)";
            refusals.push(job.refusal(what, why, advice));
        } else if known.is_none()
            && let Err((why, advice)) = unattached(table, object.id)
        {
            refusals.push(job.refusal(what, why, &advice));
        }
    }
    for segment in table
        .shared
        .iter_mut()
        .filter_map(|shared| shared.segment.as_mut())
    {
        segment.creator = job.inner(segment.creator);
    }
}

/// A segment without attachments is looked at by attaching to it.
fn unattached(table: &mut Table, id: u32) -> Result<u32, (String, String)> {
    let unreadable = |error: std::io::Error| {
        let why = format!("it cannot be read: {error}");
        (why, "checkpoint as its owner, or as root".to_owned())
    };
    let attached = Attached::new(id).map_err(unreadable)?;
    let own = crate::areas::own();
    let area = own.iter().find(|area| area.start == attached.address());
    let area = area.ok_or_else(|| unreadable(std::io::ErrorKind::NotFound.into()))?;
    let path = format!("/proc/self/map_files/{:x}-{:x}", area.start, area.end);
    let file = File::open(path).map_err(unreadable)?;
    table.segment(&file, &area.path)
}

/// Makes a segment, empty, and opens it as descriptor `place`. `at`: free addresses.
pub(crate) fn make(
    shell: &mut Shell,
    process: &Process,
    known: (&super::Host, &Credentials),
    shared: &SharedMemory,
    (at, place): (u64, u32),
) {
    let Some((segment, object)) = parts(shared) else {
        return;
    };
    super::make(
        shell,
        process,
        known,
        Kind::Segment,
        object,
        |program, label| {
            let mut flags = super::creation(object);
            if shared.huge_page_size != 0 {
                flags |=
                    SHM_HUGETLB | shared.huge_page_size.trailing_zeros() << libc::MAP_HUGE_SHIFT;
            }
            let args = [object.key.into(), shared.size.into(), flags.into()];
            let expect = Expect::Exactly(u64::from(object.id));
            program.call(libc::SYS_shmget, &args, expect, label);
        },
    );
    let length = length(shared);
    attach(shell, object.id, at, false);
    let path = format!("/proc/self/map_files/{at:x}-{:x}", at + length);
    let fd = shell.open_path(&path, libc::O_RDWR as u32);
    shell
        .program
        .must(libc::SYS_shmdt, &[at.into()], "detach it");
    shell.rename(fd, place, true);
    if segment.locked {
        let args = [object.id.into(), libc::SHM_LOCK.into(), 0.into()];
        shell.program.must(libc::SYS_shmctl, &args, "lock it");
    }
}

fn parts(shared: &SharedMemory) -> Option<(&Segment, &images::proto::IpcObject)> {
    let segment = shared.segment.as_ref()?;
    Some((segment, segment.object.as_ref()?))
}

/// Of an attachment.
fn length(shared: &SharedMemory) -> u64 {
    shared
        .size
        .next_multiple_of(shared.huge_page_size.max(PAGE_SIZE as u64))
}

fn attach(shell: &mut Shell, id: u32, at: u64, read_only: bool) {
    let flags = if read_only { libc::SHM_RDONLY } else { 0 };
    let args = [id.into(), at.into(), flags.into()];
    let label = format!("attach shared memory segment {id}");
    shell
        .program
        .call(libc::SYS_shmat, &args, Expect::Exactly(at), label);
}

/// Attaches what a process had attached. Each attachment is made as a whole at `at` and its pieces moved from there, as shmdt(2) takes
/// down what came of one shmat(2).
pub(crate) fn map(shell: &mut Shell, mappings: &[Mapping], objects: &[SharedMemory], at: u64) {
    let mut attachments: BTreeMap<(u32, u64), Vec<&Mapping>> = BTreeMap::new();
    let object = |mapping: &Mapping| {
        let shared = objects.get((mapping.file as usize).wrapping_sub(1))?;
        let segment = mapping.kind() == Mapped::AnonymousShared && shared.segment.is_some();
        segment.then_some(shared)
    };
    for mapping in mappings.iter().filter(|mapping| object(mapping).is_some()) {
        let key = (mapping.file, mapping.start.wrapping_sub(mapping.offset));
        attachments.entry(key).or_default().push(mapping);
    }
    for pieces in attachments.into_values() {
        let Some((shared, (_, segment))) = pieces
            .first()
            .and_then(|piece| object(piece))
            .and_then(|shared| Some((shared, parts(shared)?)))
        else {
            continue;
        };
        let read_only = !pieces.iter().any(|piece| has(&piece.vm_flags, "mw"));
        attach(shell, segment.id, at, read_only);
        for piece in pieces {
            let length = piece.end - piece.start;
            let from = at.wrapping_add(piece.offset);
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let args = [
                from.into(),
                length.into(),
                length.into(),
                flags.into(),
                piece.start.into(),
            ];
            let label = format!("have it at {:x}-{:x}", piece.start, piece.end);
            let expect = Expect::Exactly(piece.start);
            shell.program.call(libc::SYS_mremap, &args, expect, label);
            let args = [piece.start.into(), length.into(), piece.prot.into()];
            shell.program.must(libc::SYS_mprotect, &args, "protect it");
        }
        let args = [at.into(), length(shared).into()];
        shell
            .program
            .must(libc::SYS_munmap, &args, "unmap what it had not");
    }
}

/// Owner and mode; and it is removed, if it was, now that everybody is attached.
pub(crate) fn finish(shell: &mut Shell, shared: &SharedMemory) {
    let Some((segment, object)) = parts(shared) else {
        return;
    };
    // struct shmid64_ds
    let set = shell.program.bytes(super::permissions(object, 112));
    let args = [object.id.into(), libc::IPC_SET.into(), set.into()];
    shell
        .program
        .must(libc::SYS_shmctl, &args, "set its owner and permissions");
    if segment.removed {
        let (nr, args) = super::remove(Kind::Segment, object.id);
        shell
            .program
            .must(nr, &args, "remove it once nobody is attached");
    }
}
