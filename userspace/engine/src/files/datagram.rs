//! Sockets without a state beyond their addresses and options: UDP (udp(7)), raw (raw(7)), packet (packet(7)) and netlink (netlink(7)).
//!
//! Datagrams of UDP that wait are put back. Of the others what waits cannot be sent again without being taken for new by others too, so one
//! in which something waits is refused.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use images::proto::open_file::Kind;
use images::proto::{DatagramSocket, OpenFile, SocketOption};
use remote::sockets;

use super::{Held, Network, STATUS_FLAGS, Shell, Why, inet, options};
use crate::Refusal;

mod multicast;
mod packet;
mod queue;

const UDP: i32 = libc::IPPROTO_UDP;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const NETLINK: i32 = libc::SOL_NETLINK;
// include/uapi/linux/netlink.h
const ADD_MEMBERSHIP: u32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;
const KINDS: [i32; 4] = [
    libc::NETLINK_ROUTE,
    libc::NETLINK_SOCK_DIAG,
    libc::NETLINK_KOBJECT_UEVENT,
    libc::NETLINK_GENERIC,
];
/// A level of its own (include/linux/socket.h, linux/icmp.h): ICMP_FILTER.
const RAW: i32 = 255;
const ICMP_FILTER: i32 = 1;

const OPTIONS: &[(i32, i32)] = &[
    (UDP, 100), // UDP_ENCAP
    (UDP, 101), // UDP_NO_CHECK6_TX
    (UDP, 102), // UDP_NO_CHECK6_RX
    (UDP, libc::UDP_SEGMENT),
    (UDP, libc::UDP_GRO),
    (IP, libc::IP_HDRINCL),
    (IP, libc::IP_MULTICAST_IF),
    (IP, libc::IP_MULTICAST_TTL),
    (RAW, ICMP_FILTER),
    (IPV6, libc::IPV6_HDRINCL),
    (IPV6, libc::IPV6_MULTICAST_IF),
    (IPV6, libc::IPV6_MULTICAST_HOPS),
    (NETLINK, libc::NETLINK_PKTINFO),
    (NETLINK, libc::NETLINK_BROADCAST_ERROR),
    (NETLINK, libc::NETLINK_NO_ENOBUFS),
    (NETLINK, libc::NETLINK_LISTEN_ALL_NSID),
    (NETLINK, libc::NETLINK_CAP_ACK),
    (NETLINK, libc::NETLINK_EXT_ACK),
    (NETLINK, libc::NETLINK_GET_STRICT_CHK),
];

/// Family, type and protocol.
fn sort(fd: &OwnedFd) -> Option<(i32, i32, i32)> {
    let number = |name| inet::number(fd, name).ok();
    let all = [libc::SO_DOMAIN, libc::SO_TYPE, libc::SO_PROTOCOL].map(number);
    Some((all[0]?, all[1]?, all[2]?))
}

/// Whether this is a socket of one of these families that is not another module's.
pub(super) fn is(fd: &OwnedFd) -> bool {
    sort(fd).is_some_and(|(domain, _, protocol)| match domain {
        libc::AF_INET | libc::AF_INET6 => protocol != libc::IPPROTO_TCP,
        libc::AF_NETLINK | libc::AF_PACKET => true,
        _ => false,
    })
}

fn unsupported<T>(what: &str) -> Result<T, Why> {
    let advice = "checkpoint when it is closed".to_owned();
    Err((format!("{what} sockets are not supported"), advice))
}

/// Family, type and protocol of one that can be restored.
pub(super) fn supported(fd: &OwnedFd) -> Result<(i32, i32, i32), Why> {
    let (domain, kind, protocol) = sort(fd).unwrap_or_default();
    match (domain, kind) {
        (libc::AF_PACKET, _) => Ok((domain, kind, protocol)),
        (libc::AF_NETLINK, _) if KINDS.contains(&protocol) => Ok((domain, kind, protocol)),
        (libc::AF_NETLINK, _) => unsupported(&format!("netlink (protocol {protocol})")),
        (_, libc::SOCK_RAW) => Ok((domain, kind, protocol)),
        // Sockets of ping(8) too, whose port is the identifier of their echo requests.
        (_, libc::SOCK_DGRAM)
            if is_echo(protocol)
                || protocol == UDP && matches!(domain, libc::AF_INET | libc::AF_INET6) =>
        {
            Ok((domain, kind, protocol))
        }
        _ => unsupported(&format!("protocol {protocol}")),
    }
}

pub(super) fn capture(held: &Held) -> Result<Kind, Why> {
    let fd = &held.file;
    let again = |why: &str| Err((why.to_owned(), "try again in a moment".to_owned()));
    let failed = |error: std::io::Error| {
        let why = format!("it cannot be looked at: {error}");
        (why, "try again".to_owned())
    };
    let (domain, kind, protocol) = supported(fd)?;
    let inet = matches!(domain, libc::AF_INET | libc::AF_INET6);
    let udp = inet && kind == libc::SOCK_DGRAM && protocol == UDP;
    let first = sockets::peek(fd, 1, 0).ok();
    let waits = first.is_some();
    if waits && !udp {
        return again("something waits in it that the program has not read");
    }
    if first.is_some_and(|first| first.data.is_empty()) {
        return again("an empty datagram waits in it");
    }
    let corked = sockets::option(fd, UDP, libc::UDP_CORK, 4);
    if udp && corked.is_ok_and(|value| value.iter().any(|&byte| byte != 0)) {
        return again("it is corked (UDP_CORK), and what it holds back cannot be read");
    }
    let netlink = domain == libc::AF_NETLINK;
    let peer = sockets::name(fd, true).ok().filter(|_| inet);
    let mut which = [options::ANY, options::INET, OPTIONS, packet::OPTIONS].concat();
    if peer.is_none() {
        which.extend(options::UNCONNECTED);
    }
    let groups = netlink.then(|| sockets::option(fd, NETLINK, LIST_MEMBERSHIPS, 256));
    let groups = groups.transpose().map_err(failed)?.unwrap_or_default();
    let bits = groups.iter().enumerate().flat_map(|(nth, byte)| {
        let set = (0..8).filter(move |bit| byte >> bit & 1 == 1);
        set.map(move |bit| 8 * nth as u32 + bit + 1)
    });
    let groups: Vec<u32> = bits.collect();
    if protocol == libc::NETLINK_GENERIC && netlink && !groups.is_empty() {
        return unsupported("generic netlink multicast");
    }
    let packet = domain == libc::AF_PACKET;
    // A new one to compare options with is not to take packets.
    let of = if packet { 0 } else { protocol };
    let mut socket = DatagramSocket {
        domain: domain as u32,
        r#type: kind as u32,
        protocol: protocol as u32,
        name: sockets::name(fd, false).map_err(failed)?,
        peer: peer.unwrap_or_default(),
        options: options::capture(fd, domain, kind, of, &which).map_err(failed)?,
        groups,
        ..Default::default()
    };
    if inet {
        socket.memberships = multicast::capture(fd);
    }
    if packet {
        socket.packet_memberships = packet::capture(held)?;
    }
    if waits {
        socket.queue = queue::capture(fd, &socket)?;
    }
    Ok(Kind::Datagram(socket))
}

fn is_echo(protocol: i32) -> bool {
    matches!(protocol, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6)
}

pub(super) fn open(shell: &mut Shell, socket: &DatagramSocket, flags: u32) -> u32 {
    let kind = socket.r#type | libc::SOCK_CLOEXEC as u32;
    let netlink = socket.domain == libc::AF_NETLINK as u32;
    let packet = socket.domain == libc::AF_PACKET as u32;
    let raw = socket.r#type == libc::SOCK_RAW as u32;
    let what = match () {
        () if netlink => "netlink",
        () if packet => "packet",
        () if raw => "raw",
        () => "UDP",
    };
    // A packet socket takes packets from when it is bound on.
    let protocol = if packet { 0 } else { socket.protocol };
    let args = [socket.domain.into(), kind.into(), protocol.into()];
    let fd = shell.open(libc::SYS_socket, &args, format!("make a {what} socket"));
    options::set(shell, fd, &socket.options);
    let at = inet::address(&socket.name);
    // Nobody's yet: netlink(7), nl_pid; a port that is not given yet.
    let unbound = match () {
        () if netlink => socket.name.get(4..8).is_none_or(|pid| pid == [0; 4]),
        () if packet => packet::is_unbound(&socket.name),
        () if raw => at.is_none_or(|at| at.ip().is_unspecified()),
        () => at.is_none_or(|at| at.port() == 0),
    };
    if !unbound {
        let mut name = socket.name.clone();
        if netlink {
            name.truncate(8);
            name.resize(12, 0);
        }
        if packet {
            // The address of the interface, which is told shorter than the kernel wants it.
            name.resize(20, 0);
        }
        let length = name.len();
        let name = shell.program.bytes(name);
        let args = [fd.into(), name.into(), length.into()];
        let label = at.map_or_else(|| "bind it".to_owned(), |at| format!("bind it to {at}"));
        shell.program.must(libc::SYS_bind, &args, label);
    }
    for group in &socket.groups {
        options::set_one(
            shell,
            fd,
            NETLINK as u32,
            ADD_MEMBERSHIP,
            &group.to_ne_bytes(),
        );
    }
    multicast::join(shell, fd, socket);
    packet::join(shell, fd, socket);
    if !socket.peer.is_empty() {
        let peer = shell.program.bytes(socket.peer.clone());
        let args = [fd.into(), peer.into(), socket.peer.len().into()];
        shell
            .program
            .must(libc::SYS_connect, &args, "set whom it talks to");
    }
    queue::fill(shell, fd, socket);
    shell.fcntl(
        fd,
        libc::F_SETFL,
        u64::from(flags & STATUS_FLAGS),
        "set its flags",
    );
    fd
}

/// Why an address cannot be had on this host.
pub(crate) fn check(file: &OpenFile, network: Network, root: u32) -> Option<Refusal> {
    let Some(Kind::Datagram(socket)) = &file.kind else {
        return None;
    };
    let shares = |option: &SocketOption| {
        let names = [
            libc::SO_REUSEADDR,
            libc::SO_REUSEPORT,
            libc::SO_BINDTODEVICE,
        ];
        option.level == libc::SOL_SOCKET as u32 && names.contains(&(option.name as i32))
    };
    if let Some((what, why)) = multicast::check(socket).or_else(|| packet::check(socket)) {
        let advice = "restore on a host with an interface of that name and number".to_owned();
        return Some(Refusal {
            pid: root,
            what,
            why,
            advice,
        });
    }
    if network.own || socket.protocol != UDP as u32 {
        return None;
    }
    let at = inet::address(&socket.name).filter(|at| at.port() != 0)?;
    let alone = !socket.options.iter().any(shares) && socket.peer.is_empty();
    let error = UdpSocket::bind(at).err().filter(|_| alone)?;
    Some(Refusal {
        pid: root,
        what: format!("UDP socket at {at}"),
        why: format!("that cannot be had here: {error}"),
        advice: "end the program that has that port, or restore where the address is".to_owned(),
    })
}
