//! TCP sockets (tcp(7)): listening ones, and connections within the job or to the outside.
//!
//! A connection within the job is a new one between the same addresses: nobody can see its sequence numbers, and what was not read yet is
//! sent again. So nothing has to be done to the connections of a running job.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use images::proto::open_file::Kind;
use images::proto::{OpenFile, TcpOutside, TcpSocket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use remote::{sockets, sys};

use super::{Held, Network, Table, Why, options};
use crate::{Refusal, TcpPolicy};

pub(crate) mod filter;
pub(crate) mod outside;
pub(crate) mod rebuild;

const TCP: i32 = libc::IPPROTO_TCP;
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
    (TCP, 16), // TCP_THIN_LINEAR_TIMEOUTS
    (TCP, 37), // TCP_TX_DELAY
    (TCP, 44), // TCP_RTO_MAX_MS
    (TCP, 45), // TCP_RTO_MIN_US
    (TCP, 46), // TCP_DELACK_MAX_US
];

/// What only a socket that is not connected takes, or that the kernel itself changes then.
const UNCONNECTED: &[(i32, i32)] = &[
    (TCP, libc::TCP_MAXSEG),
    (TCP, libc::TCP_WINDOW_CLAMP),
    (TCP, 27), // TCP_SAVE_SYN
    (TCP, 30), // TCP_FASTOPEN_CONNECT
    (TCP, 34), // TCP_FASTOPEN_NO_COOKIE
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

/// An address as the kernel has it.
pub(crate) fn sockaddr(at: SocketAddr) -> Vec<u8> {
    let mut bytes = match at {
        SocketAddr::V4(_) => (libc::AF_INET as u16).to_ne_bytes().to_vec(),
        SocketAddr::V6(_) => (libc::AF_INET6 as u16).to_ne_bytes().to_vec(),
    };
    bytes.extend(at.port().to_be_bytes());
    match at {
        SocketAddr::V4(at) => bytes.extend(at.ip().octets()),
        SocketAddr::V6(at) => {
            bytes.extend([0; 4]);
            bytes.extend(at.ip().octets());
        }
    }
    bytes.resize(if at.is_ipv4() { 16 } else { 28 }, 0);
    bytes
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
    let state = info.first().copied().unwrap_or(0);
    let segments_received = word(140);
    let mut which: Vec<(i32, i32)> = [options::ANY, options::INET, OPTIONS].concat();
    if state == LISTENING || (state == CLOSED && segments_received == 0) {
        which.extend([options::UNCONNECTED, UNCONNECTED].concat());
    }
    let options = options::capture(fd, domain, libc::SOCK_STREAM, TCP, &which);
    let mut socket = TcpSocket {
        inode: held.meta.ino(),
        domain: domain as u32,
        name: sockets::name(fd, false).map_err(unreadable)?,
        options: options.map_err(unreadable)?,
        ..Default::default()
    };
    match state {
        LISTENING => {
            let (waiting, backlog) = (word(24), word(28));
            socket.listening = true;
            socket.backlog = backlog;
            // Who they are is found out when all sockets are known.
            socket.waiting = vec![0; waiting as usize];
        }
        CLOSED if segments_received != 0 => {
            let mut poll_ = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut poll_, PollTimeout::ZERO);
            let error = poll_[0]
                .revents()
                .is_some_and(|bits| bits.contains(PollFlags::POLLERR));
            // To ask for the error takes it away.
            if error {
                return Err(again(
                    "its connection has failed, and the program has not noticed yet",
                ));
            }
            socket.ended = true;
            socket.unread = unread(fd)?;
        }
        CLOSED => {}
        state @ (ESTABLISHED | HALF_CLOSED | CLOSE_WAIT) => {
            socket.peer = sockets::name(fd, true).map_err(unreadable)?;
            outside::leave_repair(fd);
            // A flag that `PollFlags` has no name for, and so does not show. In the other state it means that the other end has closed.
            let wanted = PollFlags::from_bits_retain(libc::POLLRDHUP);
            let mut poll_ = [PollFd::new(fd.as_fd(), wanted)];
            let _ = poll(&mut poll_, PollTimeout::ZERO);
            let reads = state == CLOSE_WAIT || poll_[0].revents().is_some();
            let writes = state != HALF_CLOSED;
            socket.shutdown = u32::from(!reads) | u32::from(!writes) << 1;
            // Whether data was sent to who has not accepted the connection: it cannot be looked at there.
            socket.backlog = word(156);
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
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    let mut sockets: Vec<(usize, TcpSocket)> = Vec::new();
    for (nth, (id, _)) in table.pending.iter().enumerate() {
        if let Some(socket) = tcp(&table.files[*id as usize - 1]) {
            sockets.push((nth, socket.clone()));
        }
    }
    let accepts = waiting(&mut sockets);
    for (at, (nth, socket)) in sockets.iter().enumerate() {
        if socket.peer.is_empty() || accepts.contains(&socket.inode) {
            continue;
        }
        let (here, there) = (plain(&socket.name), plain(&socket.peer));
        let mut others = sockets.iter().enumerate();
        let other = others.find(|(other, (_, o))| {
            *other != at && plain(&o.name) == there && plain(&o.peer) == here
        });
        match other {
            Some((other, _)) => inside.push((at, other)),
            None if table.tcp.0 == TcpPolicy::Refuse => {
                refuse(&table.pending[*nth].1, outside::unwanted(socket));
            }
            None => outside.push(at),
        }
    }
    let held = |nth: usize| &table.pending[nth].1;
    for &(at, other) in &inside {
        let (nth, there) = (sockets[at].0, sockets[other].0);
        sockets[at].1.other = sockets[other].1.inode;
        if !has_arrived(&held(nth).file, begin) {
            match outside::unsent(&held(nth).file, &held(there).file) {
                Ok(unsent) => sockets[at].1.unsent = unsent,
                Err(error) => refuse(held(nth), outside::unreadable(&error)),
            }
        }
    }
    // Only now has everything arrived everywhere.
    for &(at, _) in &inside {
        match unread(&held(sockets[at].0).file) {
            Ok(data) => sockets[at].1.unread = data,
            Err(why) => refuse(held(sockets[at].0), why),
        }
    }
    if table.tcp == (TcpPolicy::Keep, true) && !outside.is_empty() {
        let ends = outside
            .iter()
            .filter_map(|&at| outside::ends(&sockets[at].1));
        match outside::hold_off(ends.collect()) {
            Ok(filter) => table.held_off = Some(filter),
            Err(why) => return refuse(held(sockets[outside[0]].0), why),
        }
    }
    for at in outside {
        let (nth, socket) = &mut sockets[at];
        if let Err(why) = outer(held(*nth), socket, table.tcp.0) {
            refuse(held(*nth), why);
        }
    }
    for (nth, mut socket) in sockets {
        if !socket.listening {
            socket.backlog = 0;
        }
        let id = table.pending[nth].0;
        table.files[id as usize - 1].kind = Some(Kind::Tcp(socket));
    }
    for nth in 0..table.pending.len() {
        let (id, held) = &table.pending[nth];
        let zero = |socket: &TcpSocket| socket.waiting.contains(&0);
        if tcp(&table.files[*id as usize - 1]).is_some_and(zero) {
            let why = "connections wait in it that are not accepted yet, from outside of the job or with data";
            refuse(held, again(why));
        }
    }
}

/// Finds those who wait to be accepted; gives their inodes. Who connected first was made first, as far as anybody can tell.
fn waiting(sockets: &mut [(usize, TcpSocket)]) -> Vec<u64> {
    let alone = |socket: &TcpSocket| {
        let there = plain(&socket.peer);
        !socket.peer.is_empty()
            && socket.shutdown == 0
            && socket.backlog == 0
            && !sockets.iter().any(|(_, o)| {
                !o.peer.is_empty()
                    && plain(&o.name) == there
                    && plain(&o.peer) == plain(&socket.name)
            })
    };
    let clients = sockets.iter().filter(|(_, socket)| alone(socket));
    let mut clients: Vec<(u64, Option<(IpAddr, u16)>)> =
        clients.map(|(_, c)| (c.inode, plain(&c.peer))).collect();
    clients.sort_unstable();
    let mut found = Vec::new();
    for (_, socket) in sockets.iter_mut().filter(|(_, s)| !s.waiting.is_empty()) {
        let Some((ip, port)) = plain(&socket.name) else {
            continue;
        };
        let mine = clients.iter().filter(|(_, there)| {
            there.is_some_and(|(to, at)| at == port && (to == ip || ip.is_unspecified()))
        });
        let mine: Vec<u64> = mine.map(|(inode, _)| *inode).collect();
        if mine.len() == socket.waiting.len() {
            socket.waiting.clone_from(&mine);
            found.extend(mine);
        }
    }
    found
}

/// A connection that leads out of the job.
fn outer(held: &Held, socket: &mut TcpSocket, policy: TcpPolicy) -> Result<(), Why> {
    let fd = &held.file;
    if policy == TcpPolicy::Close {
        socket.unread = unread(fd)?;
        socket.outside = Some(TcpOutside::default());
        return Ok(());
    }
    let mut poll_ = [PollFd::new(
        fd.as_fd(),
        PollFlags::from_bits_retain(libc::POLLRDHUP),
    )];
    let _ = poll(&mut poll_, PollTimeout::ZERO);
    if socket.shutdown & 2 != 0 || poll_[0].revents().is_none() {
        let why = "one of its ends has closed, which cannot be kept";
        return Err((why.to_owned(), "checkpoint with --tcp close".to_owned()));
    }
    if held.pid == std::process::id() {
        return Err(again(
            "it is on its way through a Unix socket, and cannot be kept so",
        ));
    }
    outside::capture(fd, socket).map_err(|error| outside::refused(&error))
}

/// Waits until the other end has all that was sent, if it has room for it.
fn has_arrived(fd: &OwnedFd, begin: Instant) -> bool {
    loop {
        let waiting = sys::ioctl_read(fd, libc::TIOCOUTQ, 4).unwrap_or_default();
        let nothing = waiting.iter().all(|&byte| byte == 0);
        if nothing || begin.elapsed() > QUIET {
            return nothing;
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
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].map(sys::read_text);
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
pub(crate) fn check(file: &OpenFile, network: Network, root: u32) -> Option<Refusal> {
    let socket = tcp(file)?;
    if !socket.listening {
        return outside::check(socket, network, root);
    }
    if network.own {
        return None;
    }
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
