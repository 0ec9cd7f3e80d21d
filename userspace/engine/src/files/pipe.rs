//! Pipes and FIFOs with what is in them.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{OpenFile, PipeEnd};
use remote::sys;

use super::outer::Outer;
use super::{Held, Making, STATUS_FLAGS, Shell, Why};

pub(crate) fn capture(held: &Held) -> Kind {
    let path = if held.link.starts_with("pipe:") {
        String::new()
    } else {
        held.link.clone()
    };
    let capacity = sys::fcntl(&held.file, libc::F_GETPIPE_SZ, 0).unwrap_or(0) as u32;
    Kind::Pipe(PipeEnd {
        pipe: held.meta.ino(),
        path,
        capacity,
        ..Default::default()
    })
}

fn reads(flags: u32) -> bool {
    flags & libc::O_ACCMODE as u32 != libc::O_WRONLY as u32
}

fn writes(flags: u32) -> bool {
    flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
}

/// Packet mode is the writing end's (pipe(2)).
fn makes_packets(flags: u32) -> bool {
    writes(flags) && flags & libc::O_DIRECT as u32 != 0
}

/// Finds out which pipes lead out of the job, and reads the others without taking anything out.
pub(crate) fn finish(
    files: &mut [OpenFile],
    pending: &[(u32, Held)],
    outer: &Outer,
    refuse: &mut dyn FnMut(&Held, Why),
) {
    let is_pipe =
        |files: &[OpenFile], id: u32| matches!(files[id as usize - 1].kind, Some(Kind::Pipe(_)));
    let ends: Vec<&(u32, Held)> = pending
        .iter()
        .filter(|(id, _)| is_pipe(files, *id))
        .collect();
    let mut done: Vec<u64> = Vec::new();
    for (id, held) in &ends {
        let inode = held.meta.ino();
        let same = || {
            ends.iter().filter(|(_, other)| {
                other.meta.ino() == inode && other.meta.dev() == held.meta.dev()
            })
        };
        let (reader, writer) = (
            same().find(|(_, h)| reads(h.flags)),
            same().any(|(_, h)| writes(h.flags)),
        );
        if reader.is_none() || !writer {
            if let Some(kind) = outer.object(held) {
                files[*id as usize - 1].kind = Some(kind);
                continue;
            }
            // A FIFO has a name by which it is opened again, whoever is at its other end.
            if held.link.starts_with("pipe:") && other_end_is_alive(held) {
                let why =
                    "the other end of this pipe is held by a process outside of the job".to_owned();
                refuse(
                    held,
                    (
                        why,
                        "checkpoint the process that holds it too, as one job".to_owned(),
                    ),
                );
                continue;
            }
        }
        if done.contains(&inode) {
            continue;
        }
        done.push(inode);
        let Some((reader_id, reader)) = reader else {
            continue;
        };
        match peek(&reader.file) {
            Ok((data, packets)) => {
                if let Some(Kind::Pipe(end)) = &mut files[*reader_id as usize - 1].kind {
                    end.data = data;
                    // One read gives all of a stream.
                    let stream = packets.len() < 2 && !same().any(|(_, h)| makes_packets(h.flags));
                    end.packets = if stream { Vec::new() } else { packets };
                }
            }
            Err(error) => refuse(
                held,
                (
                    format!("what is in it cannot be read: {error}"),
                    "try again".to_owned(),
                ),
            ),
        }
    }
}

/// A read end hangs up when the last writer is gone, a write end reports an error when the last reader is (pipe(7)).
fn other_end_is_alive(held: &Held) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(held.file.as_fd(), PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    !fds[0]
        .revents()
        .is_some_and(|events| events.intersects(gone))
}

/// The bytes in a pipe and how many a read at a time gives, by duplicating them into one of our own: packets stay packets there.
fn peek(pipe: &OwnedFd) -> std::io::Result<(Vec<u8>, Vec<u32>)> {
    let waiting = sys::bytes_waiting(pipe)?;
    let (mut data, mut packets) = (vec![0; waiting], Vec::new());
    if waiting == 0 {
        return Ok((data, packets));
    }
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // As many buffers as the original has: each may hold less than a page.
    let capacity = sys::fcntl(pipe, libc::F_GETPIPE_SZ, 0)?;
    sys::fcntl(&write, libc::F_SETPIPE_SZ, capacity)?;
    let n = sys::tee(pipe, &write, waiting)?;
    if n != waiting {
        return Err(std::io::Error::other(format!("{n} of {waiting} bytes")));
    }
    drop(write);
    let (mut read, mut at) = (std::fs::File::from(read), 0);
    while at < waiting {
        let n = read.read(&mut data[at..])?;
        packets.push(n as u32);
        at += n;
    }
    Ok((data, packets))
}

/// What is to be written at a time: a packet, or of a stream a multiple of a page, which leaves as few buffers partly filled as there were.
fn pieces(end: &PipeEnd) -> Vec<&[u8]> {
    if end.packets.is_empty() {
        return end.data.chunks(64 << 10).collect();
    }
    let mut rest = end.data.as_slice();
    let mut next = |length: &u32| {
        let (packet, behind) = rest.split_at((*length as usize).min(rest.len()));
        rest = behind;
        packet
    };
    end.packets.iter().map(&mut next).collect()
}

/// All ends of the same pipe, by id.
fn ends<'a>(making: &Making<'a>, pipe: u64) -> Vec<(&'a OpenFile, &'a PipeEnd)> {
    let end = |file: &'a OpenFile| match &file.kind {
        Some(Kind::Pipe(end)) if end.pipe == pipe => Some((file, end)),
        _ => None,
    };
    making.files.iter().filter_map(end).collect()
}

/// Makes a pipe with all its ends when the first of them comes up; the others find theirs made. The process that makes it keeps each end at its
/// place, whoever it is for.
pub(crate) fn open(
    shell: &mut Shell,
    making: &Making<'_>,
    end: &PipeEnd,
    file: &OpenFile,
) -> Option<u32> {
    let all = ends(making, end.pipe);
    let &(first, _) = all.first()?;
    if first.id != file.id {
        // Made by another process: fetched from there when that is another one than this.
        let (maker, me) = (making.maker(first.id)?.pid, making.maker(file.id)?.pid);
        return (maker != me).then(|| shell.fetch(maker, making.place(file.id)));
    }
    // Both ends for the time of making, so that opening another never blocks.
    let (read, write) = if end.path.is_empty() {
        let both = shell.program.output(8);
        shell.program.must(
            libc::SYS_pipe2,
            &[both.into(), libc::O_CLOEXEC.into()],
            "make a pipe",
        );
        (shell.numbers.allocate(), shell.numbers.allocate())
    } else {
        let both = shell.open_path(&end.path, (libc::O_RDWR | libc::O_NONBLOCK) as u32);
        let second = shell.open(libc::SYS_dup, &[both.into()], "keep the FIFO open");
        (both, second)
    };
    if end.capacity != 0 {
        let label = format!(
            "give a pipe {} bytes (see /proc/sys/fs/pipe-max-size)",
            end.capacity
        );
        let capacity = u64::from(end.capacity);
        shell.fcntl(write, libc::F_SETPIPE_SZ, capacity, &label);
    }
    for (_, end) in &all {
        let mode = |shell: &mut Shell, flags: i32| {
            if !end.packets.is_empty() {
                shell.fcntl(write, libc::F_SETFL, flags as u64, "begin or end packets");
            }
        };
        if !end.data.is_empty() {
            mode(shell, libc::O_DIRECT);
            for piece in pieces(end) {
                let data = shell.program.bytes(piece);
                let args = [write.into(), data.into(), piece.len().into()];
                let label = format!("put {} bytes into the pipe", piece.len());
                shell.program.call(
                    libc::SYS_write,
                    &args,
                    remote::Expect::Exactly(piece.len() as u64),
                    label,
                );
            }
            mode(shell, 0);
        }
    }
    let mut used = [false; 2];
    for (other, _) in &all {
        let which = usize::from(!reads(other.flags));
        let both = reads(other.flags) && writes(other.flags);
        let fd = if used[which] || both || !end.path.is_empty() {
            // One more open file description of the same end.
            let path = if end.path.is_empty() {
                format!("/proc/self/fd/{}", [read, write][which])
            } else {
                end.path.clone()
            };
            shell.open_path(
                &path,
                other.flags & libc::O_ACCMODE as u32 | libc::O_NONBLOCK as u32,
            )
        } else {
            used[which] = true;
            let original = [read, write][which];
            shell.open(libc::SYS_dup, &[original.into()], "keep one end")
        };
        shell.fcntl(
            fd,
            libc::F_SETFL,
            u64::from(other.flags & STATUS_FLAGS),
            "set its flags",
        );
        shell.rename(fd, making.place(other.id), true);
        super::set_owner(shell, making.place(other.id), other);
    }
    shell.close(read);
    shell.close(write);
    None
}
