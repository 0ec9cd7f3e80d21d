//! POSIX message queues (mq_overview(7)). Messages can only be taken out, so the process that holds the queue takes them out and sends them
//! again in one program, which runs to its end even if we die meanwhile; whoever looks finds them in the same order.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{OpenFile, PosixMessage, PosixQueue, Snapshot};
use nix::sys::statfs::{FsType, fstatfs};
use remote::{Arg, Expect, Program, ipc, sys};

use super::{Held, Making, Shell, Why, pty};
use crate::{CheckpointError, Refusal, procfs};

/// include/uapi/linux/magic.h (MQUEUE_MAGIC, ipc/mqueue.c)
const MAGIC: FsType = FsType(0x1980_0202);
const DELETED: &str = " (deleted)";
/// With more, the program that takes them out and sends them again would not fit into the room we have in a process.
const MOST: usize = 64;
/// struct iovec
const VECTOR: usize = 16;

/// Whether it is one: they are all in one directory.
pub(crate) fn is(held: &Held) -> bool {
    held.link.rfind('/') == Some(0)
        && fstatfs(&held.file).is_ok_and(|fs| fs.filesystem_type() == MAGIC)
}

/// All but the messages.
pub(crate) fn capture(held: &Held) -> Result<Kind, Why> {
    let unreadable = |error: std::io::Error| {
        let why = format!("this message queue cannot be looked at: {error}");
        (why, "report this kernel".to_owned())
    };
    let attributes = ipc::queue_attributes(&held.file).map_err(unreadable)?;
    // "QSIZE:5 NOTIFY:0 SIGNO:0 NOTIFY_PID:0" (ipc/mqueue.c, mqueue_read_file)
    let path = format!("/proc/self/fd/{}", held.file.as_raw_fd());
    let text = File::open(path)
        .and_then(std::io::read_to_string)
        .map_err(unreadable)?;
    let waiting = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("NOTIFY_PID:"));
    if waiting.is_none_or(|pid| pid != "0") {
        let why = format!(
            "process {} is to be told of its next message (mq_notify(3)), which is not supported",
            waiting.unwrap_or("?")
        );
        let advice = "let the program wait in mq_receive(3) or poll(2) instead";
        return Err((why, advice.to_owned()));
    }
    let name = held.link.trim_start_matches('/');
    Ok(Kind::PosixQueue(PosixQueue {
        name: name.strip_suffix(DELETED).unwrap_or(name).to_owned(),
        removed: held.meta.nlink() == 0,
        inode: held.meta.ino(),
        capacity: attributes.capacity,
        size: attributes.size,
        messages: Vec::new(),
        mode: held.meta.mode() & 0o7777,
        uid: held.meta.uid(),
        gid: held.meta.gid(),
    }))
}

fn queue(file: &OpenFile) -> Option<&PosixQueue> {
    match &file.kind {
        Some(Kind::PosixQueue(queue)) => Some(queue),
        _ => None,
    }
}

/// Reads what waits in the queues: each is read through the first descriptor of it.
pub(crate) fn finish(
    files: &mut [OpenFile],
    pending: &[(u32, Held)],
    run: pty::Running<'_>,
    refuse: &mut dyn FnMut(&Held, Why),
) -> Result<(), CheckpointError> {
    let mut done: Vec<u64> = Vec::new();
    for (id, held) in pending {
        let Some(Kind::PosixQueue(queue)) = &mut files[*id as usize - 1].kind else {
            continue;
        };
        if done.contains(&queue.inode) {
            continue;
        }
        done.push(queue.inode);
        let waiting = ipc::queue_attributes(&held.file).map_or(0, |now| now.waiting);
        if waiting > MOST {
            let why = format!(
                "{waiting} messages wait in this queue; more than {MOST} are not supported"
            );
            refuse(held, (why, "checkpoint when fewer wait".to_owned()));
        } else if waiting != 0 {
            match read(held, queue.size as usize, waiting, &mut *run)? {
                Some(messages) => queue.messages = messages,
                None => {
                    let why = "what waits in this queue could not be read".to_owned();
                    refuse(held, (why, "try again".to_owned()));
                }
            }
        }
    }
    Ok(())
}

/// The messages of a queue of messages of at most `size` bytes.
fn read(
    held: &Held,
    size: usize,
    waiting: usize,
    run: pty::Running<'_>,
) -> Result<Option<Vec<PosixMessage>>, CheckpointError> {
    let pid = held.pid;
    let slot = size.next_multiple_of(8);
    let length = waiting * (slot + VECTOR);
    let mut program = Program::new();
    let args = [
        0.into(),
        length.into(),
        (libc::PROT_READ | libc::PROT_WRITE).into(),
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).into(),
        u64::MAX.into(),
        0.into(),
    ];
    program.try_call(libc::SYS_mmap, &args, "make room for messages");
    let mut open = |path: &str, flags: i32| {
        let path = program.string(path);
        let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let args = [libc::AT_FDCWD.into(), path.into(), flags.into(), 0.into()];
        program.try_call(libc::SYS_openat, &args, "open the queue");
    };
    open(&format!("/proc/self/fd/{}", held.fd), libc::O_RDWR);
    open("/dev/null", libc::O_WRONLY);
    let made = run(pid, &program)?.results;
    let messages = match made[..] {
        [room, queue, null] if made.iter().all(|result| *result >= 0) => {
            let room = room as u64;
            let vectors = room + (waiting * slot) as u64;
            let vector = |_| [room.to_ne_bytes(), [0; 8]].concat();
            let bytes: Vec<u8> = (0..waiting).flat_map(vector).collect();
            sys::write_memory(pid as i32, &[(vectors, &bytes)])
                .map_err(crate::freeze::failed(format!("writing to process {pid}")))?;
            let mut program = Program::new();
            let places = (0..waiting as u64)
                .map(|nth| (room + nth * slot as u64, vectors + nth * VECTOR as u64));
            let mut taken = Vec::new();
            for (place, vector) in places {
                let args = [
                    queue.into(),
                    place.into(),
                    size.into(),
                    (vector + 8).into(),
                    0.into(),
                ];
                let length =
                    program.try_call(libc::SYS_mq_timedreceive, &args, "take a message out");
                // Its priority was written to where the length of a vector is: writing that to nowhere makes it the result of a call.
                let args = [null.into(), vector.into(), 1.into()];
                let priority = program.try_call(libc::SYS_writev, &args, "see its priority");
                taken.push((place, length, priority));
            }
            for &(place, length, priority) in &taken {
                let (length, priority) = (Arg::Result(length), Arg::Result(priority));
                let args = [queue.into(), place.into(), length, priority, 0.into()];
                program.try_call(libc::SYS_mq_timedsend, &args, "send it again");
            }
            let results = run(pid, &program)?.results;
            let message = |&(place, length, priority): &(u64, usize, usize)| {
                let length = usize::try_from(results[length]).ok()?;
                let mut data = vec![0; length];
                sys::read_memory(pid as i32, place, &mut data).ok()?;
                Some(PosixMessage {
                    priority: u32::try_from(results[priority]).ok()?,
                    data,
                })
            };
            taken.iter().map(message).collect()
        }
        _ => None,
    };
    let mut program = Program::new();
    if let [room, open @ ..] = &made[..] {
        for fd in open.iter().filter(|fd| **fd >= 0) {
            program.try_call(
                libc::SYS_close,
                &[(*fd).into()],
                "close what it was read by",
            );
        }
        if *room >= 0 {
            let args = [(*room).into(), length.into()];
            program.try_call(libc::SYS_munmap, &args, "give back the room for messages");
        }
    }
    run(pid, &program)?;
    Ok(messages)
}

/// A queue of this host with the name of one of the job's.
#[derive(Debug, Clone)]
pub(crate) struct Present {
    name: String,
    /// Whether it is like the job's: then it is what a dead job has left.
    alike: bool,
    waiting: usize,
    /// A process that has it open.
    user: Option<u32>,
}

/// Those that there are.
pub(crate) fn present(snapshot: &Snapshot) -> Vec<Present> {
    let queues = snapshot.files.iter().filter_map(queue);
    let find = |queue: &PosixQueue| {
        let found = File::from(ipc::open_queue(&queue.name).ok()?);
        let (meta, now) = (found.metadata().ok()?, ipc::queue_attributes(&found).ok()?);
        let is = (meta.uid(), meta.mode() & 0o7777, now.capacity, now.size);
        Some(Present {
            name: queue.name.clone(),
            alike: is == (queue.uid, queue.mode, queue.capacity, queue.size),
            waiting: now.waiting,
            user: user(&format!("/{}", queue.name)),
        })
    };
    queues
        .filter(|queue| !queue.removed)
        .filter_map(find)
        .collect()
}

/// A process other than us that has a queue open.
fn user(link: &str) -> Option<u32> {
    let all = procfs::numbered("/proc").into_iter();
    let mut others = all.filter(|&pid| pid != std::process::id());
    others.find(|pid| {
        let fds = procfs::numbered(&format!("/proc/{pid}/fd")).into_iter();
        let mut links = fds.filter_map(|fd| procfs::link(&format!("/proc/{pid}/fd/{fd}")).ok());
        links.any(|other| other == link)
    })
}

/// Why a queue cannot be made where one is already.
pub(crate) fn check(file: &OpenFile, present: &[Present], root: u32) -> Option<Refusal> {
    let queue = queue(file).filter(|queue| !queue.removed)?;
    let there = present.iter().find(|there| there.name == queue.name)?;
    let (why, advice) = match there.user {
        Some(pid) => (
            format!("process {pid} has one with this name open"),
            "end that process before the restore".to_owned(),
        ),
        None if !there.alike && there.waiting != 0 => (
            format!(
                "there is another one with this name, in which {} messages wait",
                there.waiting
            ),
            format!(
                "remove it: mount -t mqueue none /mnt; rm /mnt/{}",
                queue.name
            ),
        ),
        None => return None,
    };
    Some(Refusal {
        pid: root,
        what: format!("POSIX message queue /{}", queue.name),
        why,
        advice,
    })
}

/// Makes a queue with all that was open on it when the first of these comes up; the others find theirs made, as with pipes.
pub(crate) fn open(
    shell: &mut Shell,
    making: &Making<'_>,
    wanted: &PosixQueue,
    file: &OpenFile,
) -> Option<u32> {
    let same = |file: &&OpenFile| queue(file).is_some_and(|other| other.inode == wanted.inode);
    let all: Vec<&OpenFile> = making.files.iter().filter(same).collect();
    let first = *all.first()?;
    if first.id != file.id {
        let (maker, me) = (making.maker(first.id)?.pid, making.maker(file.id)?.pid);
        return (maker != me).then(|| shell.fetch(maker, making.place(file.id)));
    }
    let name = shell.program.string(&if wanted.removed {
        format!("ckptd-{}-{}", wanted.inode, making.maker(file.id)?.pid)
    } else {
        wanted.name.clone()
    });
    // One that a dead job has left.
    let unlink = |shell: &mut Shell| {
        shell.program.try_call(
            libc::SYS_mq_unlink,
            &[name.into()],
            "remove the queue's name",
        );
    };
    unlink(shell);
    // struct mq_attr
    let attributes = [0, wanted.capacity, wanted.size, 0, 0, 0, 0, 0];
    let attributes = shell.program.words(&attributes);
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let args = [name.into(), flags.into(), 0o600.into(), attributes.into()];
    let label = format!(
        "make a message queue /{} (see /proc/sys/fs/mqueue and RLIMIT_MSGQUEUE)",
        wanted.name
    );
    let made = shell.open(libc::SYS_mq_open, &args, label);
    if wanted.removed {
        unlink(shell);
    }
    let owner = [made.into(), wanted.uid.into(), wanted.gid.into()];
    shell
        .program
        .try_call(libc::SYS_fchown, &owner, "set its owner");
    shell.program.must(
        libc::SYS_fchmod,
        &[made.into(), wanted.mode.into()],
        "set its mode",
    );
    let messages = all
        .iter()
        .filter_map(|file| queue(file))
        .flat_map(|queue| &queue.messages);
    for message in messages {
        let data = shell.program.bytes(message.data.clone());
        let length = message.data.len().into();
        let args = [
            made.into(),
            data.into(),
            length,
            message.priority.into(),
            0.into(),
        ];
        let label = format!("send {} bytes", message.data.len());
        shell
            .program
            .call(libc::SYS_mq_timedsend, &args, Expect::Exactly(0), label);
    }
    for other in all {
        let flags = other.flags & (libc::O_ACCMODE | libc::O_NONBLOCK) as u32;
        let fd = shell.open_path(&format!("/proc/self/fd/{made}"), flags);
        shell.rename(fd, making.place(other.id), true);
        super::set_owner(shell, making.place(other.id), other);
    }
    shell.close(made);
    None
}
