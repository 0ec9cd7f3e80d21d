//! Unix sockets (unix(7)): names, connections, what is on its way in them with its descriptors and credentials.
//!
//! What waits in a socket is peeked at. Where that takes more than one look, the place to look at (SO_PEEK_OFF) is moved for a moment.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use images::proto::open_file::Kind;
use images::proto::{Message, OpenFile, UnixSocket};
use remote::{sockets, sys};

use super::{Held, Table, Why, options};
use crate::procfs;

pub(crate) mod rebuild;

// include/uapi/linux/unix_diag.h
const SHOW: u32 = 2 | 4 | 8 | 16;
const VFS: u16 = 1;
const PEER: u16 = 2;
const ICONS: u16 = 3;
const RQLEN: u16 = 4;
const SHUTDOWN: u16 = 6;
/// TCP_ESTABLISHED, TCP_LISTEN: states of Unix sockets too.
const CONNECTED: u8 = 1;
const LISTENING: u8 = 10;
/// More than any datagram or a stream's whole queue holds by default.
const ROOM: usize = 256 << 10;

fn again(why: &str) -> Why {
    (why.to_owned(), "try again in a moment".to_owned())
}

fn unreadable(error: io::Error) -> Why {
    again(&format!("it cannot be looked at: {error}"))
}

pub(super) fn domain(fd: &OwnedFd) -> Option<i32> {
    number(fd, libc::SO_DOMAIN).ok()
}

fn number(fd: &OwnedFd, name: i32) -> io::Result<i32> {
    let value = sockets::option(fd, libc::SOL_SOCKET, name, 4)?;
    Ok(i32::from_ne_bytes(value.try_into().unwrap_or_default()))
}

/// struct sockaddr_un without its family, and without the NUL behind a path.
fn path(address: &[u8]) -> Vec<u8> {
    let name = address.get(2..).unwrap_or_default();
    match name.first() {
        None | Some(0) => name.to_vec(),
        Some(_) => name
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default()
            .to_vec(),
    }
}

fn is_path(name: &[u8]) -> bool {
    name.first().is_some_and(|&byte| byte != 0)
}

pub(super) fn capture(held: &Held) -> Result<Kind, Why> {
    let fd = &held.file;
    let inode = held.meta.ino();
    // struct unix_diag_req; the cookie of all ones is any.
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
    for word in [u32::MAX, inode as u32, SHOW, u32::MAX, u32::MAX] {
        request.extend(word.to_ne_bytes());
    }
    let answer = sockets::diagnose(&request, false).map_err(unreadable)?;
    let answer = answer.first().filter(|answer| answer.len() >= 16);
    let answer = answer.ok_or_else(|| again("the kernel does not know it"))?;
    let state = answer[2];
    let attributes = sockets::attributes(&answer[16..]);
    let words = |kind: u16| -> Vec<u32> {
        let found = attributes.iter().find(|(other, _)| *other == kind);
        let bytes = found.map_or(&[][..], |(_, bytes)| bytes);
        let word = |b: &[u8]| u32::from_ne_bytes(b.try_into().unwrap_or_default());
        bytes.chunks_exact(4).map(word).collect()
    };
    let kind = number(fd, libc::SO_TYPE).map_err(unreadable)?;
    let name = path(&sockets::name(fd, false).map_err(unreadable)?);
    let shutdown = attributes.iter().find(|(kind, _)| *kind == SHUTDOWN);
    let peer = words(PEER).first().copied();
    let mut socket = UnixSocket {
        inode,
        r#type: kind as u32,
        listening: state == LISTENING,
        peer: u64::from(peer.unwrap_or(0)),
        shutdown: shutdown.map_or(0, |(_, bits)| u32::from(bits[0])),
        options: options::capture(fd, libc::AF_UNIX, kind, 0, options::ANY).map_err(unreadable)?,
        ..Default::default()
    };
    if is_path(&name) {
        bound(held, &mut socket, &name, words(VFS).first().copied())?;
    }
    socket.name = name;
    if socket.listening {
        socket.backlog = words(RQLEN).get(1).copied().unwrap_or(128);
        socket.waiting = words(ICONS).into_iter().map(u64::from).collect();
        if socket.waiting.contains(&0) {
            return Err(again(
                "somebody has connected to it, and closed that again before it was accepted",
            ));
        }
    }
    let stream = kind != libc::SOCK_DGRAM;
    socket.peer_closed = stream && state == CONNECTED && socket.peer == 0 && socket.shutdown == 3;
    if !stream && peer.is_some() {
        socket.peer_closed = socket.peer == 0;
    }
    if let Ok(address) = sockets::name(fd, true) {
        socket.peer_name = path(&address);
    }
    if let Ok(credentials) = sockets::option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, 12)
        && let Ok(bytes) = <[u8; 12]>::try_from(credentials)
    {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        (socket.peer_pid, socket.peer_uid, socket.peer_gid) = (word(0), word(4), word(8));
    }
    if stream && sockets::peek(fd, 1, libc::MSG_OOB).is_ok() {
        return Err(again("it has urgent data waiting"));
    }
    Ok(Kind::Unix(socket))
}

/// Where a path that a socket is bound to leads.
fn bound(held: &Held, socket: &mut UnixSocket, name: &[u8], inode: Option<u32>) -> Result<(), Why> {
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    if name.is_relative() {
        // Whoever bound it did so from its working directory, which it may have left.
        let cwd = procfs::link(&format!("/proc/{}/cwd", held.pid)).unwrap_or_default();
        socket.directory = cwd;
    }
    let full = PathBuf::from(&socket.directory).join(name);
    let meta = std::fs::symlink_metadata(&full).ok();
    let meta = meta.filter(|meta| inode.is_some_and(|inode| meta.ino() as u32 == inode));
    if let Some(meta) = meta {
        socket.file = true;
        (socket.mode, socket.uid, socket.gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
    } else if name.is_relative() {
        let why = format!(
            "it is bound to {}, relative to a directory that is not known",
            name.display()
        );
        let advice = "bind it to an absolute path".to_owned();
        return Err((why, advice));
    }
    Ok(())
}

fn unix(file: &OpenFile) -> Option<&UnixSocket> {
    match &file.kind {
        Some(Kind::Unix(socket)) => Some(socket),
        _ => None,
    }
}

/// Reads what is on its way, and finds out who is connected to whom.
pub(super) fn finish(table: &mut Table, refuse: &mut dyn FnMut(&Held, Why)) {
    let mut nth = 0;
    // Descriptors that are on their way may be sockets too: they are added behind.
    while nth < table.pending.len() {
        let (id, file) = (table.pending[nth].0, table.pending[nth].1.file.try_clone());
        let wanted = unix(&table.files[id as usize - 1]).is_some_and(|socket| !socket.listening);
        if wanted {
            let queue = file
                .map_err(unreadable)
                .and_then(|file| queue(table, id, &file));
            match queue {
                Ok(queue) => {
                    if let Some(Kind::Unix(socket)) = &mut table.files[id as usize - 1].kind {
                        socket.queue = queue;
                    }
                }
                Err(why) => refuse(&table.pending[nth].1, why),
            }
        }
        nth += 1;
    }
    for nth in 0..table.pending.len() {
        let (id, held) = &table.pending[nth];
        let Some(socket) = unix(&table.files[*id as usize - 1]).cloned() else {
            continue;
        };
        match settle(table, &socket, held) {
            Ok(settled) => table.files[*id as usize - 1].kind = Some(Kind::Unix(settled)),
            Err(why) => refuse(held, why),
        }
    }
}

fn find(table: &Table, is: impl Fn(&UnixSocket) -> bool) -> Option<&UnixSocket> {
    table
        .files
        .iter()
        .filter_map(unix)
        .find(|socket| is(socket))
}

/// Refuses what leads out of the job, and what could not be made again.
fn settle(table: &Table, socket: &UnixSocket, held: &Held) -> Result<UnixSocket, Why> {
    let mut socket = socket.clone();
    let stream = socket.r#type != libc::SOCK_DGRAM as u32;
    let waits = find(table, |other| other.waiting.contains(&socket.inode));
    let outside = || {
        let name = String::from_utf8_lossy(&socket.peer_name).replace('\0', "@");
        let name = if name.is_empty() {
            name
        } else {
            format!(" ({name})")
        };
        let why = format!("it is connected to a process outside of the job{name}");
        let advice =
            "checkpoint the process at its other end too, as one job, or when it is closed";
        (why, advice.to_owned())
    };
    for client in &socket.waiting {
        if find(table, |other| other.inode == *client).is_none() {
            let why = "a process outside of the job has connected to it, and was not accepted yet";
            return Err(again(why));
        }
    }
    let peer = find(table, |other| other.inode == socket.peer);
    if socket.peer != 0 && peer.is_none() {
        let by_name = !stream
            && socket
                .peer_name
                .first()
                .is_some_and(|&b| b == b'/' || b == 0);
        if !by_name || !socket.queue.is_empty() {
            return Err(outside());
        }
        socket.peer = 0;
    } else {
        let connected = stream && !socket.listening && !socket.peer_name.is_empty();
        if connected && peer.is_none() && waits.is_none() && !socket.peer_closed {
            return Err(outside());
        }
        if stream {
            let sent = sys::ioctl_read(&held.file, libc::TIOCOUTQ, 4).unwrap_or_default();
            if waits.is_some() && sent.iter().any(|&byte| byte != 0) {
                return Err(again(
                    "it has sent data over a connection that is not accepted yet",
                ));
            }
        }
        if let (Some(peer), false) = (peer, stream)
            && peer.peer != socket.inode
            && (peer.name.is_empty() || (is_path(&peer.name) && !peer.file))
        {
            let why = "it is connected to a socket that has no name any more";
            return Err((why.to_owned(), "checkpoint when it is closed".to_owned()));
        }
        socket.peer_name.clear();
    }
    if !stream && socket.peer_closed && !socket.queue.is_empty() && !socket.name.is_empty() {
        let why = "datagrams wait in it from a socket that was closed";
        return Err(again(why));
    }
    if stream && is_path(&socket.name) && !socket.listening && !socket.file {
        // Taken from a listening socket that is gone, or whose file is: its name is free.
        let name = Path::new(std::ffi::OsStr::from_bytes(&socket.name));
        let listens = find(table, |other| other.listening && other.name == socket.name);
        if listens.is_none() && name.exists() {
            let why = format!(
                "{}, which it was accepted at, has another owner by now",
                name.display()
            );
            return Err((why, "checkpoint when the connection is closed".to_owned()));
        }
    }
    // Of the job's own numbers.
    let outer = socket.peer_pid;
    socket.peer_pid = table.members.get(&outer).copied().unwrap_or(0);
    Ok(socket)
}

/// Everything that waits in a socket.
fn queue(table: &mut Table, id: u32, fd: &OwnedFd) -> Result<Vec<Message>, Why> {
    let Some(socket) = unix(&table.files[id as usize - 1]).cloned() else {
        return Ok(Vec::new());
    };
    let stream = socket.r#type == libc::SOCK_STREAM as u32;
    let peeked = match look(fd, ROOM) {
        Ok(Some(peeked)) => peeked,
        Ok(None) => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let waiting = sys::bytes_waiting(fd).map_err(unreadable)?;
    let plain = peeked.descriptors.is_empty();
    if stream && plain && peeked.length == waiting && peeked.length < ROOM {
        return Ok(vec![message(table, &socket, peeked)?]);
    }
    let option = |value: i32| {
        sockets::set_option(
            fd,
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            &value.to_ne_bytes(),
        )
    };
    let before = number(fd, libc::SO_PEEK_OFF).map_err(unreadable)?;
    let mut all = Vec::new();
    let looked = (|| -> io::Result<()> {
        let mut offset = 0i32;
        loop {
            option(offset)?;
            let Some(mut peeked) = look(fd, ROOM)? else {
                return Ok(());
            };
            if !stream && peeked.length > peeked.data.len() {
                option(offset)?;
                peeked = look(fd, peeked.length)?.unwrap_or_default();
            }
            if stream && !peeked.descriptors.is_empty() {
                // They come with the first byte of what was sent with them: what was sent before is a message of its own.
                option(offset)?;
                match sockets::peek_whole(fd, peeked.length - 1) {
                    Ok(before) if before.length > 0 => peeked = before,
                    Err(error) if error.raw_os_error() != Some(libc::EFAULT) => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
            offset += peeked.length as i32;
            all.push(peeked);
        }
    })();
    option(before).and(looked).map_err(unreadable)?;
    all.into_iter()
        .map(|peeked| message(table, &socket, peeked))
        .collect()
}

/// What waits at the place to look at; `None` at the end.
fn look(fd: &OwnedFd, room: usize) -> io::Result<Option<sockets::Peeked>> {
    match sockets::peek(fd, room, libc::MSG_TRUNC) {
        Ok(peeked) => {
            // A closed connection gives nothing, for ever.
            let nothing = peeked.length == 0 && peeked.descriptors.is_empty();
            let stream = number(fd, libc::SO_TYPE)? != libc::SOCK_DGRAM;
            Ok((!(nothing && stream)).then_some(peeked))
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOTCONN | libc::EINVAL) => Ok(None),
            _ => Err(error),
        },
    }
}

fn message(
    table: &mut Table,
    socket: &UnixSocket,
    peeked: sockets::Peeked,
) -> Result<Message, Why> {
    let mut message = Message {
        data: peeked.data,
        ..Default::default()
    };
    if message.data.is_empty() && socket.r#type != libc::SOCK_STREAM as u32 {
        // Once looked at, the kernel skips it at the next look (net/core/datagram.c).
        let why =
            "an empty datagram waits in it, which cannot be told from none at the next checkpoint";
        return Err(again(why));
    }
    for descriptor in peeked.descriptors {
        message.files.push(table.in_flight(descriptor)?);
    }
    // The overflow ids: sent when nobody had asked for credentials.
    if let Some((pid, uid, gid)) = peeked.credentials.filter(|(pid, ..)| *pid != 0) {
        let Some(&inner) = table.members.get(&(pid as u32)) else {
            let why = format!(
                "data waits in it with the credentials of process {pid}, which is not part of the job or has ended"
            );
            return Err(again(&why));
        };
        message.credentials = true;
        (message.pid, message.uid, message.gid) = (inner, uid, gid);
    }
    if socket.r#type == libc::SOCK_DGRAM as u32 && peeked.from.len() > 2 {
        let name = path(&peeked.from);
        let sender = find(table, |other| {
            other.name == name && other.r#type == socket.r#type
        });
        let Some(sender) = sender else {
            let name = String::from_utf8_lossy(&name).replace('\0', "@");
            let why = format!("a datagram waits in it from {name}, which is not part of the job");
            return Err(again(&why));
        };
        message.from = sender.inode;
    }
    Ok(message)
}

impl Table {
    /// The open file behind a descriptor that is on its way through a socket.
    fn in_flight(&mut self, fd: OwnedFd) -> Result<u32, Why> {
        let me = std::process::id();
        let number = fd.as_raw_fd() as u32;
        let held = Held::own(fd).map_err(unreadable)?;
        let key = (held.meta.dev(), held.meta.ino());
        let known = self.holders.get(&key).and_then(|others| {
            others.iter().find(|&&(other, other_fd, _)| {
                let (a, b) = (u64::from(other_fd), u64::from(number));
                let same = sys::compare(other as i32, me as i32, sys::Share::File, a, b);
                same.is_ok_and(|order| order.is_eq())
            })
        });
        if let Some(&(_, _, id)) = known {
            return Ok(id);
        }
        let kind = self.classify(&held)?;
        let state = matches!(
            kind,
            Kind::Pty(_) | Kind::Terminal(_) | Kind::Timerfd(_) | Kind::Inotify(_) | Kind::Epoll(_)
        );
        if state || held.info.contains("\nlock:") {
            let why = format!(
                "a descriptor is on its way in it ({}) that cannot be restored there",
                held.link
            );
            return Err(again(&why));
        }
        let id = self.add(kind, held.flags & !(libc::O_CLOEXEC as u32));
        self.files[id as usize - 1].owner = super::owner(&held);
        self.holders.entry(key).or_default().push((me, number, id));
        self.pending.push((id, held));
        Ok(id)
    }
}

/// Whether a name is somebody's: asked with a socket of the wrong kind, which is refused as such by whoever has it.
pub(crate) fn taken(socket: &UnixSocket) -> bool {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
    let name = std::ffi::OsStr::from_bytes(&socket.name);
    let address = if is_path(&socket.name) {
        SocketAddr::from_pathname(Path::new(&socket.directory).join(name))
    } else {
        SocketAddr::from_abstract_name(socket.name.get(1..).unwrap_or_default())
    };
    let Ok(address) = address else { return false };
    if let Some(path) = address.as_pathname()
        && let Ok(meta) = std::fs::symlink_metadata(path)
    {
        use std::os::unix::fs::FileTypeExt;
        if !meta.file_type().is_socket() || !socket.file {
            return true;
        }
    }
    let error = if socket.r#type == libc::SOCK_DGRAM as u32 {
        UnixStream::connect_addr(&address).err()
    } else {
        let any = UnixDatagram::unbound();
        any.and_then(|any| any.connect_addr(&address)).err()
    };
    match error.and_then(|error| error.raw_os_error()) {
        Some(libc::ECONNREFUSED | libc::ENOENT) => false,
        Some(libc::ENOTSOCK) | None => true,
        Some(error) => error == libc::EPROTOTYPE,
    }
}
