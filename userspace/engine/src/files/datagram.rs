//! Sockets without a state beyond their addresses and options: UDP (udp(7)) and netlink (netlink(7)).
//!
//! What waits in one cannot be put back as if from its sender, so one in which something waits is refused.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use images::proto::open_file::Kind;
use images::proto::{DatagramSocket, OpenFile, SocketOption};
use remote::sockets;

use super::{Held, STATUS_FLAGS, Shell, Why, inet, options};
use crate::Refusal;

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
// include/uapi/linux/in.h
const MCAST_MSFILTER: i32 = 48;

const OPTIONS: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
    (UDP, 100), // UDP_ENCAP
    (UDP, 101), // UDP_NO_CHECK6_TX
    (UDP, 102), // UDP_NO_CHECK6_RX
    (UDP, libc::UDP_SEGMENT),
    (UDP, libc::UDP_GRO),
    (IP, libc::IP_TOS),
    (IP, libc::IP_TTL),
    (IP, libc::IP_FREEBIND),
    (IP, libc::IP_TRANSPARENT),
    (IP, libc::IP_PKTINFO),
    (IP, libc::IP_RECVERR),
    (IP, libc::IP_RECVTTL),
    (IP, libc::IP_RECVTOS),
    (IP, libc::IP_RECVORIGDSTADDR),
    (IP, libc::IP_MTU_DISCOVER),
    (IP, libc::IP_MULTICAST_IF),
    (IP, libc::IP_MULTICAST_TTL),
    (IP, libc::IP_MULTICAST_LOOP),
    (IPV6, libc::IPV6_V6ONLY),
    (IPV6, libc::IPV6_UNICAST_HOPS),
    (IPV6, libc::IPV6_TCLASS),
    (IPV6, libc::IPV6_RECVERR),
    (IPV6, libc::IPV6_RECVPKTINFO),
    (IPV6, libc::IPV6_RECVHOPLIMIT),
    (IPV6, libc::IPV6_RECVTCLASS),
    (IPV6, libc::IPV6_MTU_DISCOVER),
    (IPV6, libc::IPV6_MULTICAST_IF),
    (IPV6, libc::IPV6_MULTICAST_HOPS),
    (IPV6, libc::IPV6_MULTICAST_LOOP),
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

pub(super) fn capture(held: &Held) -> Result<Kind, Why> {
    let fd = &held.file;
    let unsupported = |what: String| {
        let advice = "checkpoint when it is closed".to_owned();
        Err((format!("{what} sockets are not supported"), advice))
    };
    let failed = |error: std::io::Error| {
        let why = format!("it cannot be looked at: {error}");
        (why, "try again".to_owned())
    };
    let (domain, kind, protocol) = sort(fd).unwrap_or_default();
    match (domain, kind) {
        (libc::AF_PACKET, _) => return unsupported("packet".to_owned()),
        (libc::AF_NETLINK, _) if KINDS.contains(&protocol) => {}
        (libc::AF_NETLINK, _) => return unsupported(format!("netlink (protocol {protocol})")),
        (_, libc::SOCK_RAW) => return unsupported("raw".to_owned()),
        (_, libc::SOCK_DGRAM) if protocol == UDP => {}
        _ => return unsupported(format!("protocol {protocol}")),
    }
    if sockets::peek(fd, 1, libc::MSG_DONTWAIT).is_ok() {
        let why = "a datagram waits in it, which could not be put back as its sender's";
        return Err((
            why.to_owned(),
            "try again when the program has read it".to_owned(),
        ));
    }
    let netlink = domain == libc::AF_NETLINK;
    let corked = sockets::option(fd, UDP, libc::UDP_CORK, 4);
    if !netlink && corked.is_ok_and(|value| value.iter().any(|&byte| byte != 0)) {
        let why = "it is corked (UDP_CORK), and what it holds back cannot be read";
        return Err((why.to_owned(), "try again in a moment".to_owned()));
    }
    if let Some(group) = memberships(fd).first().filter(|_| !netlink) {
        let why = format!("it is a member of the multicast group {group}");
        return Err((why, "checkpoint when it has left that group".to_owned()));
    }
    let which: Vec<(i32, i32)> = [options::ANY, OPTIONS].concat();
    let groups = netlink.then(|| sockets::option(fd, NETLINK, LIST_MEMBERSHIPS, 256));
    let groups = groups.transpose().map_err(failed)?.unwrap_or_default();
    let bits = groups.iter().enumerate().flat_map(|(nth, byte)| {
        let set = (0..8).filter(move |bit| byte >> bit & 1 == 1);
        set.map(move |bit| 8 * nth as u32 + bit + 1)
    });
    let groups: Vec<u32> = bits.collect();
    if protocol == libc::NETLINK_GENERIC && netlink && !groups.is_empty() {
        return unsupported("generic netlink multicast".to_owned());
    }
    Ok(Kind::Datagram(DatagramSocket {
        domain: domain as u32,
        r#type: kind as u32,
        protocol: protocol as u32,
        name: sockets::name(fd, false).map_err(failed)?,
        peer: match sockets::name(fd, true) {
            Ok(peer) if !netlink => peer,
            _ => Vec::new(),
        },
        options: options::capture(fd, domain, kind, protocol, &which).map_err(failed)?,
        groups,
    }))
}

/// The multicast groups it has joined: of those that this host has joined, the ones whose filter the kernel shows
/// (net/ipv4/igmp.c, ip_mc_gsfget).
fn memberships(fd: &OwnedFd) -> Vec<std::net::IpAddr> {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut all: Vec<(u32, std::net::IpAddr)> = Vec::new();
    let mut interface = 0;
    for line in text("/proc/net/igmp").lines().skip(1) {
        let first = line.split_whitespace().next().unwrap_or_default();
        if line.starts_with('\t') {
            let group = u32::from_str_radix(first, 16).unwrap_or(0);
            all.push((interface, group.to_ne_bytes().into()));
        } else {
            interface = first.parse().unwrap_or(0);
        }
    }
    for line in text("/proc/net/igmp6").lines() {
        let mut words = line.split_whitespace();
        let index = words.next().and_then(|word| word.parse().ok());
        let group = words
            .nth(1)
            .and_then(|hex| u128::from_str_radix(hex, 16).ok());
        all.extend(index.zip(group.map(|group| std::net::Ipv6Addr::from(group).into())));
    }
    let joined = |&(interface, group): &(u32, std::net::IpAddr)| {
        // struct group_filter: interface, group as a struct sockaddr_storage, mode, number of sources.
        let mut filter = [0u8; 144];
        filter[..4].copy_from_slice(&interface.to_ne_bytes());
        let level = match group {
            std::net::IpAddr::V4(ip) => {
                filter[8..10].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                filter[12..16].copy_from_slice(&ip.octets());
                IP
            }
            std::net::IpAddr::V6(ip) => {
                filter[8..10].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                filter[16..32].copy_from_slice(&ip.octets());
                IPV6
            }
        };
        sockets::ask(fd, level, MCAST_MSFILTER, &mut filter).is_ok()
    };
    all.into_iter()
        .filter(joined)
        .map(|(_, group)| group)
        .collect()
}

pub(super) fn open(shell: &mut Shell, socket: &DatagramSocket, flags: u32) -> u32 {
    let kind = socket.r#type | libc::SOCK_CLOEXEC as u32;
    let args = [socket.domain.into(), kind.into(), socket.protocol.into()];
    let netlink = socket.domain == libc::AF_NETLINK as u32;
    let what = if netlink { "netlink" } else { "UDP" };
    let fd = shell.open(libc::SYS_socket, &args, format!("make a {what} socket"));
    options::set(shell, fd, &socket.options);
    let at = inet::address(&socket.name);
    // Nobody's yet: netlink(7), nl_pid; a port that is not given yet.
    let unbound = if netlink {
        socket.name.get(4..8).is_none_or(|pid| pid == [0; 4])
    } else {
        at.is_none_or(|at| at.port() == 0)
    };
    if !unbound {
        let mut name = socket.name.clone();
        if netlink {
            name.truncate(8);
            name.resize(12, 0);
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
    if !socket.peer.is_empty() {
        let peer = shell.program.bytes(socket.peer.clone());
        let args = [fd.into(), peer.into(), socket.peer.len().into()];
        shell
            .program
            .must(libc::SYS_connect, &args, "set whom it talks to");
    }
    shell.fcntl(
        fd,
        libc::F_SETFL,
        u64::from(flags & STATUS_FLAGS),
        "set its flags",
    );
    fd
}

/// Why an address cannot be had on this host.
pub(crate) fn check(file: &OpenFile, root: u32) -> Option<Refusal> {
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
