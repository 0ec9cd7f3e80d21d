//! What packet sockets have beyond addresses and options (packet(7)): memberships; and what is refused: rings and fanout groups.

use std::os::unix::fs::MetadataExt;

use images::proto::DatagramSocket;
use remote::sockets;

use super::multicast::interface;
use crate::files::{Held, Shell, Why, options};

const PACKET: i32 = 263; // SOL_PACKET
// include/uapi/linux/if_packet.h
const ADD_MEMBERSHIP: u32 = 1;
pub(super) const OPTIONS: &[(i32, i32)] = &[
    (PACKET, 8),  // PACKET_AUXDATA
    (PACKET, 9),  // PACKET_ORIGDEV
    (PACKET, 10), // PACKET_VERSION
    (PACKET, 12), // PACKET_RESERVE
    (PACKET, 14), // PACKET_LOSS
    (PACKET, 15), // PACKET_VNET_HDR
    (PACKET, 17), // PACKET_TIMESTAMP
    (PACKET, 20), // PACKET_QDISC_BYPASS
    (PACKET, 23), // PACKET_IGNORE_OUTGOING
];
// include/uapi/linux/packet_diag.h
const SHOW: u32 = 1 | 2 | 4 | 8;
const MEMBERSHIPS: u16 = 1;
const RECEIVE_RING: u16 = 2;
const SEND_RING: u16 = 3;
const FANOUT: u16 = 4;

/// The memberships, as struct packet_mreq.
pub(super) fn capture(held: &Held) -> Result<Vec<Vec<u8>>, Why> {
    let again = |why: String| (why, "try again in a moment".to_owned());
    // struct packet_diag_req; only all can be asked for.
    let mut request = vec![libc::AF_PACKET as u8, 0, 0, 0];
    for word in [0, SHOW, u32::MAX, u32::MAX] {
        request.extend(word.to_ne_bytes());
    }
    let answers = sockets::diagnose(&request, true);
    let answers = answers.map_err(|error| again(format!("it cannot be looked at: {error}")))?;
    let inode = held.meta.ino() as u32;
    let is_it = |answer: &&Vec<u8>| answer.get(4..8) == Some(&inode.to_ne_bytes()[..]);
    let answer = answers
        .iter()
        .find(is_it)
        .filter(|answer| answer.len() >= 16);
    let answer = answer.ok_or_else(|| again("the kernel does not know it".to_owned()))?;
    let attributes = sockets::attributes(&answer[16..]);
    let has = |kind: u16| attributes.iter().any(|(other, _)| *other == kind);
    for (kind, what) in [
        (RECEIVE_RING, "a ring"),
        (SEND_RING, "a ring"),
        (FANOUT, "a fanout group"),
    ] {
        if has(kind) {
            let why = format!("it is a packet socket with {what}, which is not supported");
            return Err((why, "checkpoint when it is closed".to_owned()));
        }
    }
    let list = attributes.iter().find(|(kind, _)| *kind == MEMBERSHIPS);
    let list = list.map_or(&[][..], |(_, bytes)| bytes);
    // struct packet_diag_mclist: index, count, type, length of the address, address.
    let each = list.chunks_exact(44);
    Ok(each
        .map(|one| [&one[..4], &one[8..12], &one[12..20]].concat())
        .collect())
}

fn index(name: &[u8]) -> u32 {
    let bytes = name.get(4..8).and_then(|b| b.try_into().ok());
    u32::from_ne_bytes(bytes.unwrap_or_default())
}

/// By its struct sockaddr_ll: it takes no packets.
pub(super) fn is_unbound(name: &[u8]) -> bool {
    name.get(2..8).is_none_or(|bytes| bytes == [0; 6])
}

pub(super) fn join(shell: &mut Shell, fd: u32, socket: &DatagramSocket) {
    for membership in &socket.packet_memberships {
        options::set_one(shell, fd, PACKET as u32, ADD_MEMBERSHIP, membership);
    }
}

/// What it is bound to, and why it cannot be here.
pub(super) fn check(socket: &DatagramSocket) -> Option<(String, String)> {
    let bound = socket.domain == libc::AF_PACKET as u32 && index(&socket.name) != 0;
    let lost = bound && interface(index(&socket.name)).is_none();
    let why = || {
        format!(
            "there is no interface with the number {} here",
            index(&socket.name)
        )
    };
    lost.then(|| ("a packet socket".to_owned(), why()))
}
