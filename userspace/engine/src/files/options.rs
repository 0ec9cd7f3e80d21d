//! Socket options (socket(7)): those that are not as in a new socket.

use std::os::fd::OwnedFd;

use images::proto::SocketOption;
use remote::sockets;

use super::Shell;

pub(crate) const SO_SNDBUFFORCE: u32 = 32;
const SO_RCVBUFFORCE: u32 = 33;
pub(crate) const SO_BUF_LOCK: i32 = 72;
const SO_PASSPIDFD: i32 = 76;
const SO_PASSRIGHTS: i32 = 83;
const SO_RESERVE_MEM: i32 = 73;
const SO_TXREHASH: i32 = 74;
const SO_RCVMARK: i32 = 75;
const SO_RCVPRIORITY: i32 = 82;
const SOCKET: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
/// Bytes for whatever a socket may have held back.
pub(crate) const AMPLE: i32 = 64 << 20;

/// Level and number of what any socket has.
pub(crate) const ANY: &[(i32, i32)] = &[
    // Before its address is given.
    (SOCKET, libc::SO_BINDTODEVICE),
    (SOCKET, libc::SO_REUSEADDR),
    (SOCKET, libc::SO_REUSEPORT),
    (SOCKET, libc::SO_DONTROUTE),
    (SOCKET, libc::SO_BROADCAST),
    (SOCKET, libc::SO_SNDBUF),
    (SOCKET, libc::SO_RCVBUF),
    (SOCKET, libc::SO_KEEPALIVE),
    (SOCKET, libc::SO_OOBINLINE),
    (SOCKET, libc::SO_PRIORITY),
    (SOCKET, libc::SO_LINGER),
    (SOCKET, libc::SO_PASSCRED),
    (SOCKET, libc::SO_RCVLOWAT),
    (SOCKET, libc::SO_RCVTIMEO),
    (SOCKET, libc::SO_SNDTIMEO),
    (SOCKET, libc::SO_TIMESTAMP),
    (SOCKET, libc::SO_TIMESTAMPNS),
    (SOCKET, libc::SO_PASSSEC),
    (SOCKET, libc::SO_MARK),
    (SOCKET, libc::SO_PEEK_OFF),
    (SOCKET, libc::SO_RXQ_OVFL),
    (SOCKET, libc::SO_TIMESTAMPING),
    (SOCKET, SO_PASSPIDFD),
    (SOCKET, SO_PASSRIGHTS),
    (SOCKET, libc::SO_NO_CHECK),
    (SOCKET, libc::SO_NOFCS),
    (SOCKET, libc::SO_SELECT_ERR_QUEUE),
    (SOCKET, libc::SO_BUSY_POLL),
    (SOCKET, libc::SO_PREFER_BUSY_POLL),
    (SOCKET, libc::SO_BUSY_POLL_BUDGET),
    (SOCKET, libc::SO_MAX_PACING_RATE),
    (SOCKET, libc::SO_ZEROCOPY),
    (SOCKET, libc::SO_TXTIME),
    (SOCKET, SO_RESERVE_MEM),
    (SOCKET, SO_TXREHASH),
    (SOCKET, SO_RCVMARK),
    (SOCKET, SO_RCVPRIORITY),
];

/// What sockets of IPv4 and IPv6 have besides.
pub(crate) const INET: &[(i32, i32)] = &[
    (IP, libc::IP_TOS),
    (IP, libc::IP_TTL),
    (IP, libc::IP_OPTIONS),
    (IP, libc::IP_RECVOPTS),
    (IP, libc::IP_RETOPTS),
    (IP, libc::IP_PKTINFO),
    (IP, libc::IP_MTU_DISCOVER),
    (IP, libc::IP_RECVERR),
    (IP, libc::IP_RECVTTL),
    (IP, libc::IP_RECVTOS),
    (IP, libc::IP_FREEBIND),
    (IP, libc::IP_PASSSEC),
    (IP, libc::IP_TRANSPARENT),
    (IP, libc::IP_RECVORIGDSTADDR),
    (IP, libc::IP_MINTTL),
    (IP, libc::IP_NODEFRAG),
    (IP, libc::IP_CHECKSUM),
    (IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (IP, libc::IP_RECVFRAGSIZE),
    (IP, 26), // IP_RECVERR_RFC4884
    (IP, libc::IP_MULTICAST_LOOP),
    (IP, libc::IP_MULTICAST_ALL),
    (IP, libc::IP_UNICAST_IF),
    (IP, 51), // IP_LOCAL_PORT_RANGE
    (IPV6, libc::IPV6_V6ONLY),
    (IPV6, libc::IPV6_2292PKTINFO),
    (IPV6, libc::IPV6_2292HOPOPTS),
    (IPV6, libc::IPV6_2292DSTOPTS),
    (IPV6, libc::IPV6_2292HOPLIMIT),
    (IPV6, libc::IPV6_UNICAST_HOPS),
    (IPV6, libc::IPV6_MULTICAST_LOOP),
    (IPV6, libc::IPV6_MTU_DISCOVER),
    (IPV6, libc::IPV6_RECVERR),
    (IPV6, 29), // IPV6_MULTICAST_ALL
    (IPV6, 31), // IPV6_RECVERR_RFC4884
    (IPV6, libc::IPV6_FLOWINFO_SEND),
    (IPV6, libc::IPV6_RECVPKTINFO),
    (IPV6, libc::IPV6_RECVHOPLIMIT),
    (IPV6, libc::IPV6_RECVHOPOPTS),
    (IPV6, libc::IPV6_RECVRTHDR),
    (IPV6, libc::IPV6_RECVDSTOPTS),
    (IPV6, libc::IPV6_RECVPATHMTU),
    (IPV6, libc::IPV6_DONTFRAG),
    (IPV6, libc::IPV6_RECVTCLASS),
    (IPV6, libc::IPV6_TCLASS),
    (IPV6, libc::IPV6_AUTOFLOWLABEL),
    (IPV6, libc::IPV6_ADDR_PREFERENCES),
    (IPV6, libc::IPV6_MINHOPCOUNT),
    (IPV6, libc::IPV6_ORIGDSTADDR),
    (IPV6, libc::IPV6_TRANSPARENT),
    (IPV6, libc::IPV6_UNICAST_IF),
    (IPV6, libc::IPV6_RECVFRAGSIZE),
    (IPV6, libc::IPV6_FREEBIND),
];

/// What the kernel itself changes once a socket is connected.
pub(crate) const UNCONNECTED: &[(i32, i32)] = &[(SOCKET, libc::SO_INCOMING_CPU)];

/// Those of `fd` that differ from a socket that has just been made.
pub(crate) fn capture(
    fd: &OwnedFd,
    domain: i32,
    kind: i32,
    protocol: i32,
    which: &[(i32, i32)],
) -> std::io::Result<Vec<SocketOption>> {
    let fresh = sockets::socket(domain, kind, protocol)?;
    // What this kernel, or this kind of socket, does not have is the same in both.
    let read = |fd: &OwnedFd, level, name| sockets::option(fd, level, name, 64).unwrap_or_default();
    // Sizes that nobody has set are the kernel's to choose (Linux 5.15 tells).
    let locked = read(fd, SOCKET, SO_BUF_LOCK).first().copied().unwrap_or(3);
    let chosen = |name: i32| match name {
        libc::SO_SNDBUF => locked & 1 == 0,
        libc::SO_RCVBUF => locked & 2 == 0,
        _ => false,
    };
    let which = which
        .iter()
        .filter(|&&(level, name)| level != SOCKET || !chosen(name));
    let differing = which.filter_map(|&(level, name)| {
        let value = read(fd, level, name);
        (value != read(&fresh, level, name)).then_some(SocketOption {
            level: level as u32,
            name: name as u32,
            value,
        })
    });
    let mut differing: Vec<SocketOption> = differing.collect();
    let option = |name: i32, value: Vec<u8>| SocketOption {
        level: SOCKET as u32,
        name: name as u32,
        value,
    };
    let filter = sockets::filter(fd).map_err(|error| match error.raw_os_error() {
        Some(libc::EACCES) => std::io::Error::other("an eBPF program filters what it receives"),
        _ => error,
    })?;
    if !filter.is_empty() {
        differing.push(option(libc::SO_ATTACH_FILTER, filter));
        // Only behind the filter itself.
        let locked = read(fd, SOCKET, libc::SO_LOCK_FILTER);
        if locked.iter().any(|&byte| byte != 0) {
            differing.push(option(libc::SO_LOCK_FILTER, locked));
        }
    }
    Ok(differing)
}

pub(crate) fn set(shell: &mut Shell, fd: u32, options: &[SocketOption]) {
    for option in options {
        if (option.level, option.name) == (SOCKET as u32, libc::SO_ATTACH_FILTER as u32) {
            attach_filter(shell, fd, &option.value);
            continue;
        }
        let is = |wanted: i32| option.level == SOCKET as u32 && option.name == wanted as u32;
        if is(libc::SO_SNDBUF) || is(libc::SO_RCVBUF) {
            // The kernel shows twice what was asked for (net/core/sock.c).
            let bytes: [u8; 4] = option.value.as_slice().try_into().unwrap_or_default();
            force(shell, fd, option.name as i32, i32::from_ne_bytes(bytes) / 2);
            continue;
        }
        set_one(shell, fd, option.level, option.name, &option.value);
    }
}

/// struct sock_fprog: how many instructions, and where they are.
fn attach_filter(shell: &mut Shell, fd: u32, instructions: &[u8]) {
    let at = shell.program.bytes(instructions);
    let filter = shell.program.words(&[instructions.len() as u64 / 8, 0]);
    shell.program.point(filter, 8, at);
    let args = [
        fd.into(),
        SOCKET.into(),
        libc::SO_ATTACH_FILTER.into(),
        filter.into(),
        16.into(),
    ];
    let label = "filter what it receives";
    shell.program.must(libc::SYS_setsockopt, &args, label);
}

pub(crate) fn set_one(shell: &mut Shell, fd: u32, level: u32, name: u32, value: &[u8]) {
    let bytes = shell.program.bytes(value);
    let args = [
        fd.into(),
        level.into(),
        name.into(),
        bytes.into(),
        value.len().into(),
    ];
    let label = format!("set option {name} of level {level}");
    shell.program.must(libc::SYS_setsockopt, &args, label);
}

/// Sets a size, above the limit of the host too where that is allowed (CAP_NET_ADMIN).
fn force(shell: &mut Shell, fd: u32, name: i32, size: i32) {
    let bytes = size.to_ne_bytes();
    set_one(shell, fd, SOCKET as u32, name as u32, &bytes);
    let over = if name == libc::SO_SNDBUF {
        SO_SNDBUFFORCE
    } else {
        SO_RCVBUFFORCE
    };
    let bytes = shell.program.bytes(bytes);
    let args = [
        fd.into(),
        SOCKET.into(),
        over.into(),
        bytes.into(),
        4.into(),
    ];
    let label = format!("set option {over} of level {SOCKET}");
    shell.program.try_call(libc::SYS_setsockopt, &args, label);
}

/// Room for what is put in before the real size is set.
pub(crate) fn make_room(shell: &mut Shell, fd: u32) {
    force(shell, fd, libc::SO_SNDBUF, AMPLE);
}

/// Room for so much to arrive before anybody reads; the kernel may change it again.
pub(crate) fn make_receive_room(shell: &mut Shell, fd: u32, length: usize) {
    if length < 32 << 10 {
        return;
    }
    force(
        shell,
        fd,
        libc::SO_RCVBUF,
        (2 * length).min(256 << 20) as i32,
    );
    unlock(shell, fd);
}

fn unlock(shell: &mut Shell, fd: u32) {
    let unlocked = shell.program.bytes(0i32.to_ne_bytes());
    let args = [
        fd.into(),
        SOCKET.into(),
        SO_BUF_LOCK.into(),
        unlocked.into(),
        4.into(),
    ];
    let label = "let its size change";
    shell.program.try_call(libc::SYS_setsockopt, &args, label);
}

/// Gives the send buffer its usual size again, for the kernel to change, unless an option will set it.
pub(crate) fn usual_room(shell: &mut Shell, fd: u32, options: &[SocketOption], usual: i32) {
    let sized = |option: &SocketOption| {
        option.level == SOCKET as u32 && option.name == libc::SO_SNDBUF as u32
    };
    if options.iter().any(sized) {
        return;
    }
    force(shell, fd, libc::SO_SNDBUF, usual / 2);
    unlock(shell, fd);
}
