//! TCP sockets (tcp(7)): listening ones, and connections within the job.
//!
//! A connection within the job is a new one between the same addresses: nobody can see its sequence numbers, and what was not read yet is
//! sent again. So nothing has to be done to the connections of a running job.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use images::proto::open_file::Kind;
use images::proto::{OpenFile, TcpSocket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use remote::{sockets, sys};

use super::{Held, Table, Why, options};
use crate::Refusal;

pub(crate) mod rebuild;

const TCP: i32 = libc::IPPROTO_TCP;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
// include/net/tcp_states.h
const ESTABLISHED: u8 = 1;
const HALF_CLOSED: u8 = 5; // FIN_WAIT2: the other end knows that we write no more
const TIME_WAIT: u8 = 6;
const CLOSED: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LISTENING: u8 = 10;
/// How long to wait for the kernel to acknowledge what has arrived: its delayed acknowledgements take 40 ms.
const QUIET: Duration = Duration::from_millis(300);

const OPTIONS: &[(i32, i32)] = &[
    (TCP, libc::TCP_NODELAY),
    (TCP, libc::TCP_CORK),
    (TCP, libc::TCP_KEEPIDLE),
    (TCP, libc::TCP_KEEPINTVL),
    (TCP, libc::TCP_KEEPCNT),
    (TCP, libc::TCP_SYNCNT),
    (TCP, libc::TCP_LINGER2),
    (TCP, libc::TCP_DEFER_ACCEPT),
    (TCP, libc::TCP_CONGESTION),
    (TCP, libc::TCP_USER_TIMEOUT),
    (TCP, libc::TCP_NOTSENT_LOWAT),
    (TCP, libc::TCP_FASTOPEN),
    (TCP, 36), // TCP_INQ
    (IP, libc::IP_TOS),
    (IP, libc::IP_TTL),
    (IP, libc::IP_FREEBIND),
    (IP, libc::IP_TRANSPARENT),
    (IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (IPV6, libc::IPV6_V6ONLY),
    (IPV6, libc::IPV6_UNICAST_HOPS),
    (IPV6, libc::IPV6_TCLASS),
];

fn again(why: &str) -> Why {
    (why.to_owned(), "try again in a moment".to_owned())
}

fn unreadable(error: std::io::Error) -> Why {
    again(&format!("it cannot be looked at: {error}"))
}

pub(super) fn number(fd: &OwnedFd, name: i32) -> std::io::Result<i32> {
    let value = sockets::option(fd, libc::SOL_SOCKET, name, 4)?;
    Ok(i32::from_ne_bytes(value.try_into().unwrap_or_default()))
}

pub(super) fn is_tcp(fd: &OwnedFd) -> bool {
    let domain = number(fd, libc::SO_DOMAIN);
    domain.is_ok_and(|domain| matches!(domain, libc::AF_INET | libc::AF_INET6))
        && number(fd, libc::SO_PROTOCOL).is_ok_and(|protocol| protocol == TCP)
}

/// A struct sockaddr_in or sockaddr_in6.
pub(crate) fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let ip = match i32::from(family) {
        libc::AF_INET => {
            let four: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            IpAddr::V4(Ipv4Addr::from(four))
        }
        libc::AF_INET6 => {
            let sixteen: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(sixteen))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The same address, whether a socket of the one family or the other shows it.
fn plain(bytes: &[u8]) -> Option<(IpAddr, u16)> {
    let address = address(bytes)?;
    Some((address.ip().to_canonical(), address.port()))
}

pub(super) fn capture(held: &Held) -> Result<Kind, Why> {
    let fd = &held.file;
    let domain = number(fd, libc::SO_DOMAIN).map_err(unreadable)?;
    let info = sockets::option(fd, TCP, libc::TCP_INFO, 256).map_err(unreadable)?;
    // struct tcp_info.
    let word = |at: usize| {
        let bytes = info.get(at..at + 4).and_then(|b| b.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default())
    };
    let which: Vec<(i32, i32)> = [options::ANY, OPTIONS].concat();
    let options = options::capture(fd, domain, libc::SOCK_STREAM, TCP, &which);
    let mut socket = TcpSocket {
        inode: held.meta.ino(),
        domain: domain as u32,
        name: sockets::name(fd, false).map_err(unreadable)?,
        options: options.map_err(unreadable)?,
        ..Default::default()
    };
    match info.first().copied().unwrap_or(0) {
        LISTENING => {
            let (waiting, backlog) = (word(24), word(28));
            if waiting != 0 {
                return Err(again("connections wait in it that are not accepted yet"));
            }
            socket.listening = true;
            socket.backlog = backlog;
        }
        // Segments that came in.
        CLOSED if word(140) != 0 => {
            let why = "its connection has ended, and the program has not closed it";
            return Err((why.to_owned(), "checkpoint when it is closed".to_owned()));
        }
        CLOSED => {}
        state @ (ESTABLISHED | HALF_CLOSED | CLOSE_WAIT) => {
            socket.peer = sockets::name(fd, true).map_err(unreadable)?;
            let writes = state != HALF_CLOSED;
            // A flag that `PollFlags` has no name for, and so does not show.
            let wanted = PollFlags::from_bits_retain(libc::POLLRDHUP);
            let mut poll_ = [PollFd::new(fd.as_fd(), wanted)];
            let _ = poll(&mut poll_, PollTimeout::ZERO);
            if state == ESTABLISHED && poll_[0].revents().is_none() {
                let why = "it reads no more (shutdown(2)), which is not supported yet";
                return Err((why.to_owned(), "checkpoint when it is closed".to_owned()));
            }
            socket.shutdown = if writes { 0 } else { 2 };
            if sockets::peek(fd, 1, libc::MSG_OOB).is_ok() {
                return Err(again("it has urgent data waiting"));
            }
        }
        _ => return Err(again("its connection is just being made or closed")),
    }
    Ok(Kind::Tcp(socket))
}

fn tcp(file: &OpenFile) -> Option<&TcpSocket> {
    match &file.kind {
        Some(Kind::Tcp(socket)) => Some(socket),
        _ => None,
    }
}

/// Finds the other end of each connection, and reads what has arrived.
pub(super) fn finish(table: &mut Table, refuse: &mut dyn FnMut(&Held, Why)) {
    let begin = Instant::now();
    for nth in 0..table.pending.len() {
        let (id, held) = &table.pending[nth];
        let Some(socket) = tcp(&table.files[*id as usize - 1]) else {
            continue;
        };
        if socket.peer.is_empty() {
            continue;
        }
        let (here, there) = (plain(&socket.name), plain(&socket.peer));
        let others = table.files.iter().filter_map(tcp);
        let mut others = others.filter(|other| other.inode != socket.inode);
        let other = others.find(|o| plain(&o.name) == there && plain(&o.peer) == here);
        let Some(other) = other.map(|other| other.inode) else {
            let peer = address(&socket.peer).map_or_else(String::new, |peer| peer.to_string());
            let why = format!("it is connected to {peer}, outside of the job");
            let advice = "checkpoint when the connection is closed, or the process at its other end too, as one job";
            refuse(held, (why, advice.to_owned()));
            continue;
        };
        match arrived(&held.file, begin) {
            Ok(()) => {}
            Err(why) => refuse(held, why),
        }
        if let Some(Kind::Tcp(socket)) = &mut table.files[*id as usize - 1].kind {
            socket.other = other;
        }
    }
    // Only now has everything arrived everywhere.
    for nth in 0..table.pending.len() {
        let (id, held) = &table.pending[nth];
        let Some(Kind::Tcp(socket)) = &mut table.files[*id as usize - 1].kind else {
            continue;
        };
        if socket.other == 0 {
            continue;
        }
        match unread(&held.file) {
            Ok(data) => socket.unread = data,
            Err(why) => refuse(held, why),
        }
    }
}

/// Waits until the other end has all that was sent.
fn arrived(fd: &OwnedFd, begin: Instant) -> Result<(), Why> {
    loop {
        let waiting = sys::ioctl_read(fd, libc::TIOCOUTQ, 4).map_err(unreadable)?;
        if waiting.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        if begin.elapsed() > QUIET {
            let why = "the other end has no room for what was sent, which cannot be read then";
            return Err(again(why));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn unread(fd: &OwnedFd) -> Result<Vec<u8>, Why> {
    let waiting = sys::bytes_waiting(fd).map_err(unreadable)?;
    if waiting == 0 {
        return Ok(Vec::new());
    }
    let before = number(fd, libc::SO_PEEK_OFF).unwrap_or(-1);
    if before > 0 {
        return Err(again("the program is looking into it (SO_PEEK_OFF)"));
    }
    let peeked = sockets::peek(fd, waiting, 0).map_err(unreadable)?;
    if peeked.data.len() != waiting {
        return Err(again("not all of what waits in it can be looked at"));
    }
    Ok(peeked.data)
}

/// The TCP sockets of this host with that port: state, own address and the other's (net/ipv4/tcp_ipv4.c, get_tcp4_sock).
fn ends(port: u16) -> impl Iterator<Item = (u8, SocketAddr, SocketAddr)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
    let lines: Vec<String> = tables.into_iter().flatten().collect();
    let ends: Vec<_> = lines
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(end)
        .collect();
    ends.into_iter()
        .filter(move |(_, own, _)| own.port() == port)
}

fn end(line: &str) -> Option<(u8, SocketAddr, SocketAddr)> {
    let mut words = line.split_whitespace().skip(1);
    let mut address = || {
        let (ip, port) = words.next()?.split_once(':')?;
        let word = |at: usize| {
            let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
            Some(word.to_ne_bytes())
        };
        let ip = if ip.len() == 8 {
            IpAddr::from(word(0)?)
        } else {
            let all = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            IpAddr::from(<[u8; 16]>::try_from(all).ok()?)
        };
        Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
    };
    let (own, other) = (address()?, address()?);
    Some((u8::from_str_radix(words.next()?, 16).ok()?, own, other))
}

/// Why an address cannot be had on this host.
pub(crate) fn check(file: &OpenFile, root: u32) -> Option<Refusal> {
    let socket = tcp(file).filter(|socket| socket.listening)?;
    let at = address(&socket.name)?;
    let error = TcpListener::bind(at).err()?;
    // What is left of connections from before is cleared away (`rebuild::clear`).
    let mut there = ends(at.port()).peekable();
    let remains = there.peek().is_some() && there.all(|(state, ..)| state == TIME_WAIT);
    if error.kind() == std::io::ErrorKind::AddrInUse && remains {
        return None;
    }
    Some(Refusal {
        pid: root,
        what: format!("TCP socket that listens on {at}"),
        why: format!("that cannot be had here: {error}"),
        advice: "end the program that listens there, or restore where the address is".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let line = "   4: 0100007F:CCDF 0100007F:BE12 06 00000000:00000000 03:00000E43 00000000     0        0 0 3";
        let (own, other) = ("127.0.0.1:52447", "127.0.0.1:48658");
        assert_eq!(
            end(line),
            Some((TIME_WAIT, own.parse().unwrap(), other.parse().unwrap()))
        );
        let line = "   0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(end(line).unwrap().1, "[::1]:22".parse().unwrap());
    }
}
