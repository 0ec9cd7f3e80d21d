//! Connections to processes that are not part of the job: kept by TCP_REPAIR (net/ipv4/tcp.c), or found reset.
//!
//! In repair mode a socket tells its sequence numbers and what it has sent; while it is, the job could not send. So it is for the time of
//! a few system calls only, in a row, and a socket found so is one that a ckptd left which was killed between them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use images::proto::{TcpOutside, TcpSocket};
use remote::{sockets, sys};

use super::filter::{self, Filter};
use super::{TCP, Why, address, again, number, sockaddr};
use crate::files::{Network, Shell, options};
use crate::{Refusal, TcpPolicy};

// include/uapi/linux/tcp.h
const REPAIR: i32 = 19;
const REPAIR_QUEUE: i32 = 20;
const QUEUE_SEQ: i32 = 21;
const REPAIR_OPTIONS: u32 = 22;
const TIMESTAMP: i32 = 24;
const REPAIR_WINDOW: i32 = 29;
const RECEIVE: i32 = 1;
const SEND: i32 = 2;
const ON: i32 = 1;
const OFF: i32 = 0;
/// Without a probe of the other end's window.
const OFF_QUIETLY: i32 = -1;
// include/uapi/linux/sockios.h
const SIOCOUTQNSD: u64 = 0x894b;
const TCPI_OPT_TIMESTAMPS: u32 = 1;
const TCPI_OPT_SACK: u32 = 2;
const TCPI_OPT_WSCALE: u32 = 4;
// include/net/tcp.h
const TCPOPT_MSS: u32 = 2;
const TCPOPT_WINDOW: u32 = 3;
const TCPOPT_SACK_PERM: u32 = 4;
const TCPOPT_TIMESTAMP: u32 = 8;
/// How often the queues are read again because a packet came in between.
const TRIES: usize = 50;

pub(crate) fn ends(socket: &TcpSocket) -> Option<(SocketAddr, SocketAddr)> {
    Some((address(&socket.name)?, address(&socket.peer)?))
}

fn set(fd: &OwnedFd, name: i32, value: i32) -> io::Result<()> {
    sockets::set_option(fd, TCP, name, &value.to_ne_bytes())
}

fn get(fd: &OwnedFd, name: i32) -> io::Result<u32> {
    let value = sockets::option(fd, TCP, name, 4)?;
    Ok(u32::from_ne_bytes(value.try_into().unwrap_or_default()))
}

/// Does something while a socket is in repair mode, which forgets SO_REUSEADDR.
fn repaired<T>(fd: &OwnedFd, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let reuse = number(fd, libc::SO_REUSEADDR)?;
    set(fd, REPAIR, ON)?;
    let result = work();
    set(fd, REPAIR, OFF_QUIETLY)?;
    let reuse = reuse.min(1).to_ne_bytes();
    sockets::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &reuse)?;
    result
}

fn queued(fd: &OwnedFd, request: u64) -> io::Result<usize> {
    let bytes = sys::ioctl_read(fd, request, 4)?;
    Ok(u32::from_ne_bytes(bytes.try_into().unwrap_or_default()) as usize)
}

fn peek(fd: &OwnedFd, length: usize) -> io::Result<Vec<u8>> {
    if length == 0 {
        return Ok(Vec::new());
    }
    let data = sockets::peek(fd, length, 0)?.data;
    if data.len() == length {
        Ok(data)
    } else {
        Err(io::Error::other("not all of it can be looked at"))
    }
}

/// What a connection within the job has sent and the other end has not got: that one is at `received`, by its sequence numbers.
pub(super) fn unsent(fd: &OwnedFd, other: &OwnedFd) -> io::Result<Vec<u8>> {
    let received = repaired(other, || {
        set(other, REPAIR_QUEUE, RECEIVE)?;
        get(other, QUEUE_SEQ)
    })?;
    repaired(fd, || {
        set(fd, REPAIR_QUEUE, SEND)?;
        let end = get(fd, QUEUE_SEQ)?;
        let all = peek(fd, queued(fd, libc::TIOCOUTQ)?)?;
        let missing = end.wrapping_sub(received) as usize;
        Ok(all[all.len() - missing.min(all.len())..].to_vec())
    })
}

/// Reads all of an established connection.
pub(super) fn capture(fd: &OwnedFd, socket: &mut TcpSocket) -> io::Result<()> {
    for _ in 0..TRIES {
        let info = sockets::option(fd, TCP, libc::TCP_INFO, 256)?;
        let byte = |at: usize| u32::from(info.get(at).copied().unwrap_or(0));
        let position = |queue| -> io::Result<u32> {
            set(fd, REPAIR_QUEUE, queue)?;
            get(fd, QUEUE_SEQ)
        };
        let read = repaired(fd, || {
            let (received, end) = (position(RECEIVE)?, position(SEND)?);
            let (waiting, out) = (sys::bytes_waiting(fd)?, queued(fd, libc::TIOCOUTQ)?);
            let sent = peek(fd, out)?;
            set(fd, REPAIR_QUEUE, RECEIVE)?;
            let unread = peek(fd, waiting)?;
            let outside = TcpOutside {
                kept: true,
                send_sequence: end.wrapping_sub(out as u32),
                sent,
                receive_sequence: received.wrapping_sub(waiting as u32),
                segment: get(fd, libc::TCP_MAXSEG)?,
                options: byte(5),
                send_scale: byte(6) & 15,
                receive_scale: byte(6) >> 4,
                timestamp: get(fd, TIMESTAMP)?,
                window: sockets::option(fd, TCP, REPAIR_WINDOW, 20)?,
            };
            let unsent = queued(fd, SIOCOUTQNSD)?;
            // Packets come in all the while.
            let same = position(RECEIVE)? == received
                && sys::bytes_waiting(fd)? == waiting
                && position(SEND)? == end
                && queued(fd, libc::TIOCOUTQ)? == out;
            Ok(same.then_some((outside, unread, unsent)))
        })?;
        if let Some((mut outside, unread, unsent)) = read {
            socket.unsent = outside
                .sent
                .split_off(outside.sent.len() - unsent.min(outside.sent.len()));
            socket.unread = unread;
            socket.outside = Some(outside);
            return Ok(());
        }
    }
    Err(io::Error::other("packets come faster than it can be read"))
}

/// Why a connection is not kept.
pub(super) fn refused(error: &io::Error) -> Why {
    let why = format!("its state cannot be read: {error}");
    let advice = "run ckptd with CAP_NET_ADMIN, or checkpoint with --tcp close";
    (why, advice.to_owned())
}

/// Holds off the packets of all connections.
pub(super) fn hold_off(ends: Vec<filter::Ends>) -> Result<Filter, Why> {
    Filter::new(ends).map_err(|error| {
        let why = format!("packets cannot be held off until the job is restored: {error}");
        let advice =
            "install nftables and run ckptd with CAP_NET_ADMIN, or checkpoint with --tcp close";
        (why, advice.to_owned())
    })
}

/// What a job would be told of connections that lead out of it.
pub(super) fn unwanted(socket: &TcpSocket) -> Why {
    let peer = address(&socket.peer).map_or_else(String::new, |peer| peer.to_string());
    let why = format!("it is connected to {peer}, outside of the job");
    let advice = "checkpoint when the connection is closed, or with --tcp close or keep, or the process at its other end too, as one job";
    (why, advice.to_owned())
}

/// The connections that are restored as they were.
pub(crate) fn kept(socket: &TcpSocket, policy: TcpPolicy) -> Option<&TcpOutside> {
    let outside = socket.outside.as_ref()?;
    (outside.kept && policy != TcpPolicy::Close).then_some(outside)
}

/// Why a connection cannot go on here.
pub(super) fn check(socket: &TcpSocket, network: Network, root: u32) -> Option<Refusal> {
    kept(socket, network.tcp)?;
    let (own, other) = ends(socket)?;
    let refuse = |why: String, advice: &str| {
        let what = format!("TCP connection from {own} to {other}");
        let advice = format!("{advice}, or restore with --tcp close");
        Some(Refusal {
            pid: root,
            what,
            why,
            advice,
        })
    };
    if network.own {
        let why = "the job is to have a network of its own".to_owned();
        return refuse(why, "restore it without one");
    }
    if let Err(error) = TcpListener::bind((own.ip(), 0)) {
        let why = format!("{} is not an address of this host: {error}", own.ip());
        return refuse(why, "restore where that address is");
    }
    // What is left of itself is cleared away (`rebuild::clear`).
    let same = |(state, from, to): (u8, SocketAddr, SocketAddr)| {
        state == super::ESTABLISHED && (from, to) == (own, other)
    };
    if super::ends(own.port()).any(same) {
        let why = "there is that very connection already: the job may still run".to_owned();
        return refuse(why, "end the process that has it");
    }
    let probe = sockets::socket(socket.domain as i32, libc::SOCK_STREAM, 0);
    if let Err(error) = probe.and_then(|probe| set(&probe, REPAIR, ON)) {
        let why = format!("its state may not be set (TCP_REPAIR): {error}");
        return refuse(why, "run ckptd with CAP_NET_ADMIN");
    }
    filter::is_there().err().and_then(|error| {
        let why = format!("packets cannot be let in again: {error}");
        refuse(why, "install nftables")
    })
}

fn option(shell: &mut Shell, fd: u32, name: i32, value: u32) {
    options::set_one(shell, fd, TCP as u32, name as u32, &value.to_ne_bytes());
}

/// Makes a connection as it was, in repair mode still. The socket is new.
pub(super) fn make(shell: &mut Shell, fd: u32, socket: &TcpSocket, outside: &TcpOutside) {
    let Some((own, other)) = ends(socket) else {
        return;
    };
    option(shell, fd, REPAIR, ON as u32);
    for (queue, sequence) in [
        (SEND, outside.send_sequence),
        (RECEIVE, outside.receive_sequence),
    ] {
        option(shell, fd, REPAIR_QUEUE, queue as u32);
        option(shell, fd, QUEUE_SEQ, sequence);
    }
    for (nr, name, label) in [
        (libc::SYS_bind, &socket.name, format!("bind it to {own}")),
        (
            libc::SYS_connect,
            &socket.peer,
            format!("be connected to {other}"),
        ),
    ] {
        let address = shell.program.bytes(name.clone());
        let args = [fd.into(), address.into(), name.len().into()];
        shell.program.must(nr, &args, label);
    }
    let mut agreed = vec![(TCPOPT_MSS, outside.segment)];
    if outside.options & TCPI_OPT_WSCALE != 0 {
        agreed.push((
            TCPOPT_WINDOW,
            outside.send_scale | outside.receive_scale << 16,
        ));
    }
    if outside.options & TCPI_OPT_SACK != 0 {
        agreed.push((TCPOPT_SACK_PERM, 0));
    }
    if outside.options & TCPI_OPT_TIMESTAMPS != 0 {
        agreed.push((TCPOPT_TIMESTAMP, 0));
    }
    let words = agreed.iter().flat_map(|&(code, value)| [code, value]);
    let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    options::set_one(shell, fd, TCP as u32, REPAIR_OPTIONS, &bytes);
    option(shell, fd, TIMESTAMP, outside.timestamp);
    options::make_room(shell, fd);
    options::make_receive_room(shell, fd, socket.unread.len());
    for (queue, data) in [(RECEIVE, &socket.unread), (SEND, &outside.sent)] {
        option(shell, fd, REPAIR_QUEUE, queue as u32);
        super::rebuild::send(shell, fd, data);
    }
    options::set_one(shell, fd, TCP as u32, REPAIR_WINDOW as u32, &outside.window);
}

/// Lets a connection go on: both ends hear of each other again. `usual` is the size of a new socket's send buffer.
pub(crate) fn go_on(fd: &OwnedFd, socket: &TcpSocket, usual: i32) -> io::Result<()> {
    if let Some(ends) = ends(socket) {
        filter::lift(&ends);
    }
    let level = libc::SOL_SOCKET;
    let wanted = |name: i32| {
        let mut options = socket.options.iter();
        let found = options.find(|o| (o.level, o.name) == (level as u32, name as u32));
        found.map(|option| {
            i32::from_ne_bytes(option.value.as_slice().try_into().unwrap_or_default())
        })
    };
    let set_level =
        |name: i32, value: i32| sockets::set_option(fd, level, name, &value.to_ne_bytes());
    set_level(options::SO_SNDBUFFORCE as i32, options::AMPLE)?;
    set(fd, REPAIR, OFF)?;
    let mut rest = socket.unsent.as_slice();
    while !rest.is_empty() {
        let sent = sockets::send(fd, rest)?;
        rest = &rest[sent..];
    }
    let size = wanted(libc::SO_SNDBUF);
    set_level(options::SO_SNDBUFFORCE as i32, size.unwrap_or(usual) / 2)?;
    if size.is_none() {
        // Where the kernel has no such option, the size stays.
        let _ = set_level(options::SO_BUF_LOCK, 0);
    }
    set_level(libc::SO_REUSEADDR, wanted(libc::SO_REUSEADDR).unwrap_or(0))
}

/// A connection that has ended, or whose other end has gone: made with an end of our own, which goes. What had arrived is there.
pub(super) fn make_ended(shell: &mut Shell, fd: u32, socket: &TcpSocket, reset: bool) {
    let Some(own) = address(&socket.name) else {
        return;
    };
    let loopback: std::net::IpAddr = match own.ip() {
        std::net::IpAddr::V4(_) => [127, 0, 0, 1].into(),
        std::net::IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()
        }
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    let args = [socket.domain.into(), kind.into(), TCP.into()];
    let listener = shell.open(libc::SYS_socket, &args, "make a TCP socket to end it");
    let name = sockaddr(SocketAddr::new(loopback, 0));
    let length = name.len();
    let at = shell.program.bytes(name);
    let args = [listener.into(), at.into(), length.into()];
    shell.program.must(libc::SYS_bind, &args, "bind it");
    shell
        .program
        .must(libc::SYS_listen, &[listener.into(), 1.into()], "listen");
    let at = shell.program.output(length);
    let room = shell.program.bytes((length as u32).to_ne_bytes());
    let args = [listener.into(), at.into(), room.into()];
    shell
        .program
        .must(libc::SYS_getsockname, &args, "where it listens");
    // The address may not be this host's any more, and nobody is told.
    let bytes = shell.program.bytes(socket.name.clone());
    let args = [fd.into(), bytes.into(), socket.name.len().into()];
    shell
        .program
        .try_call(libc::SYS_bind, &args, format!("bind it to {own}"));
    options::make_receive_room(shell, fd, socket.unread.len());
    let args = [fd.into(), at.into(), length.into()];
    shell
        .program
        .must(libc::SYS_connect, &args, "connect to it");
    let args = [listener.into(), 0.into(), 0.into(), 0.into()];
    let end = shell.open(libc::SYS_accept4, &args, "accept it");
    options::make_room(shell, end);
    super::rebuild::send(shell, end, &socket.unread);
    if reset {
        let linger = [1i32, 0].iter().flat_map(|word| word.to_ne_bytes());
        let linger: Vec<u8> = linger.collect();
        options::set_one(
            shell,
            end,
            libc::SOL_SOCKET as u32,
            libc::SO_LINGER as u32,
            &linger,
        );
    }
    shell.close(end);
    if !reset {
        let args = [fd.into(), libc::SHUT_WR.into()];
        shell
            .program
            .must(libc::SYS_shutdown, &args, "write no more");
    }
    shell.close(listener);
}

/// What is to be said of a socket that is in repair mode already: a ckptd was killed while it looked at it.
pub(super) fn leave_repair(fd: &OwnedFd) {
    if get(fd, REPAIR).is_ok_and(|on| on == ON as u32) {
        let _ = set(fd, REPAIR, OFF);
    }
}

/// A try again, for what the kernel would not tell at once.
pub(super) fn unreadable(error: &io::Error) -> Why {
    again(&format!("what it has sent cannot be read: {error}"))
}
