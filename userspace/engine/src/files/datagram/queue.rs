//! Datagrams that wait in a UDP socket. They are put back as packets that a raw socket sends over the loopback interface, with the address of
//! whoever sent them, who may be anybody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use images::proto::{Datagram, DatagramSocket};
use remote::{Expect, sockets};

use super::{IP, IPV6, UDP};
use crate::files::{Shell, Why, inet, options};

const SOCKET: u32 = libc::SOL_SOCKET as u32;
const LARGEST: usize = 64 << 10;
/// IPPROTO_RAW of IPv6 expects the header with each packet too, once that is set (ipv6(7)).
const IPV6_HDRINCL: u32 = 36;

/// Options by which a program would see to which address each was sent, which is not known of those that wait.
fn tells_target(socket: &DatagramSocket) -> bool {
    let names = [
        (IP, libc::IP_PKTINFO),
        (IP, libc::IP_RECVORIGDSTADDR),
        (IPV6, libc::IPV6_RECVPKTINFO),
        (IPV6, libc::IPV6_RECVORIGDSTADDR),
    ];
    let is = |o: &images::proto::SocketOption| names.contains(&(o.level as i32, o.name as i32));
    socket.options.iter().any(is)
}

pub(super) fn capture(fd: &OwnedFd, socket: &DatagramSocket) -> Result<Vec<Datagram>, Why> {
    let again = |why: &str| {
        (
            why.to_owned(),
            "try again when the program has read it".to_owned(),
        )
    };
    let at = inet::address(&socket.name).ok_or_else(|| again("a datagram waits in it"))?;
    let device = |o: &images::proto::SocketOption| {
        o.name == libc::SO_BINDTODEVICE as u32 && o.level == SOCKET
    };
    if socket.options.iter().any(device) || !socket.memberships.is_empty() {
        return Err(again(
            "a datagram waits in it, which came over an interface of its own",
        ));
    }
    if at.ip().is_unspecified() && tells_target(socket) {
        return Err(again(
            "a datagram waits in it, of which it is not known to which address it came",
        ));
    }
    let unreadable = |error| {
        again(&format!(
            "a datagram waits in it that cannot be looked at: {error}"
        ))
    };
    let offset = |value: i32| {
        sockets::set_option(
            fd,
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            &value.to_ne_bytes(),
        )
    };
    let before = inet::number(fd, libc::SO_PEEK_OFF).map_err(unreadable)?;
    let mut all = Vec::new();
    let mut position = 0;
    let looked = loop {
        if let Err(error) = offset(position) {
            break Err(error);
        }
        match sockets::peek(fd, LARGEST, 0) {
            Ok(peeked) => {
                position += peeked.data.len() as i32;
                all.push(peeked);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break Ok(()),
            Err(error) => break Err(error),
        }
        // Once looked at, it is skipped at the next look.
        if all.last().is_some_and(|last| last.data.is_empty()) {
            break Err(std::io::Error::other("it is empty"));
        }
    };
    offset(before).and(looked).map_err(unreadable)?;
    let datagram = |peeked: sockets::Peeked| Datagram {
        data: peeked.data,
        from: peeked.from,
    };
    Ok(all.into_iter().map(datagram).collect())
}

/// Sends all of them to `fd`, which is bound, and makes sure that each arrives.
pub(super) fn fill(shell: &mut Shell, fd: u32, socket: &DatagramSocket) {
    let Some(at) = inet::address(&socket.name).filter(|_| !socket.queue.is_empty()) else {
        return;
    };
    let level = |name: i32, value: i32| (SOCKET, name as u32, value.to_ne_bytes());
    let mut position = 0;
    for datagram in &socket.queue {
        let Some(from) = inet::address(&datagram.from) else {
            continue;
        };
        let (packet, target) = packet(from, at, &datagram.data);
        let six = target.is_ipv6();
        let domain = if six { libc::AF_INET6 } else { libc::AF_INET };
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let args = [domain.into(), kind.into(), libc::IPPROTO_RAW.into()];
        let raw = shell.open(libc::SYS_socket, &args, "make a raw socket");
        if six {
            options::set_one(shell, raw, IPV6 as u32, IPV6_HDRINCL, &1i32.to_ne_bytes());
        }
        let length = packet.len();
        let packet = shell.program.bytes(packet);
        let name = inet::sockaddr(SocketAddr::new(target, 0));
        let size = name.len();
        let name = shell.program.bytes(name);
        let args = [
            raw.into(),
            packet.into(),
            length.into(),
            0.into(),
            name.into(),
            size.into(),
        ];
        let label = format!("send {} bytes as from {from}", datagram.data.len());
        let all = Expect::Exactly(length as u64);
        shell.program.call(libc::SYS_sendto, &args, all, label);
        shell.close(raw);
        let (of, name, value) = level(libc::SO_PEEK_OFF, position);
        options::set_one(shell, fd, of, name, &value);
        let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        let args = [
            fd.into(),
            0.into(),
            0.into(),
            flags.into(),
            0.into(),
            0.into(),
        ];
        let there = Expect::Exactly(datagram.data.len() as u64);
        shell
            .program
            .call(libc::SYS_recvfrom, &args, there, "see that it arrived");
        position += datagram.data.len() as i32;
    }
    let (of, name, value) = level(libc::SO_PEEK_OFF, -1);
    options::set_one(shell, fd, of, name, &value);
    let peeks = |o: &&images::proto::SocketOption| (o.level, o.name) == (of, name);
    if let Some(own) = socket.options.iter().find(peeks) {
        options::set_one(shell, fd, of, name, &own.value);
    }
}

/// A packet with a datagram in it, and the address to send it to: the socket's own, or that of the loopback interface if it has any.
fn packet(from: SocketAddr, to: SocketAddr, data: &[u8]) -> (Vec<u8>, IpAddr) {
    let length = 8 + data.len();
    let mut datagram = from.port().to_be_bytes().to_vec();
    datagram.extend(to.port().to_be_bytes());
    datagram.extend((length as u16).to_be_bytes());
    datagram.extend([0; 2]);
    datagram.extend(data);
    match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V6(from), to) => {
            let to = match to {
                IpAddr::V6(to) if !to.is_unspecified() => to,
                _ => Ipv6Addr::LOCALHOST,
            };
            let mut sum = datagram.clone();
            sum.extend([from.octets(), to.octets()].concat());
            if sum.len() % 2 == 1 {
                sum.insert(length, 0);
            }
            sum.extend((length as u32).to_be_bytes());
            sum.extend([0, 0, 0, UDP as u8]);
            let sum = checksum(&sum);
            datagram[6..8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend((length as u16).to_be_bytes());
            packet.extend([UDP as u8, 64]);
            packet.extend([from.octets(), to.octets()].concat());
            packet.extend(datagram);
            (packet, to.into())
        }
        (IpAddr::V4(from), to) => {
            let to = match to {
                IpAddr::V4(to) if !to.is_unspecified() => to,
                _ => Ipv4Addr::LOCALHOST,
            };
            // The kernel fills in the sum of the header and its identification; that of the datagram may be left out (RFC 768).
            let mut packet = vec![0x45, 0];
            packet.extend(((20 + length) as u16).to_be_bytes());
            packet.extend([0, 0, 0, 0, 64, UDP as u8, 0, 0]);
            packet.extend([from.octets(), to.octets()].concat());
            packet.extend(datagram);
            (packet, to.into())
        }
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks_exact(2)
        .map(|b| u32::from(u16::from_be_bytes([b[0], b[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_both_families() {
        let (four, to) = packet(
            "1.2.3.4:5".parse().unwrap(),
            "0.0.0.0:6".parse().unwrap(),
            b"abc",
        );
        assert_eq!((four.len(), to), (31, "127.0.0.1".parse().unwrap()));
        let (six, _) = packet(
            "[::2]:5".parse().unwrap(),
            "[::1]:6".parse().unwrap(),
            b"abc",
        );
        // With its own sum in it, the whole adds up to nothing.
        let mut whole = six[40..].to_vec();
        whole.push(0);
        whole.extend(&six[8..40]);
        whole.extend([0, 0, 0, 11, 0, 0, 0, 17]);
        assert_eq!(checksum(&whole), 0);
    }
}
