//! Members of multicast groups (ip(7), RFC 3678).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use images::proto::{DatagramSocket, Membership};
use remote::sockets;

use super::{IP, IPV6};
use crate::files::{Shell, options};

// include/uapi/linux/in.h
const MCAST_JOIN_GROUP: u32 = 42;
const MCAST_MSFILTER: i32 = 48;
/// struct group_filter: interface, group as a struct sockaddr_storage from 8 on, mode, number of sources, sources of 128 bytes each.
const HEAD: usize = 144;
const SOURCES: usize = 64;
/// Mode of who hears everybody: that of a plain member without sources.
const EXCLUDE: u32 = 0;

fn word(filter: &[u8], at: usize) -> u32 {
    let bytes = filter.get(at..at + 4).and_then(|b| b.try_into().ok());
    u32::from_ne_bytes(bytes.unwrap_or_default())
}

fn level(filter: &[u8]) -> i32 {
    let family = filter.get(8..10).and_then(|b| b.try_into().ok());
    let family = u16::from_ne_bytes(family.unwrap_or_default());
    if i32::from(family) == libc::AF_INET {
        IP
    } else {
        IPV6
    }
}

/// The name of an interface, by its index.
pub(super) fn interface(index: u32) -> Option<String> {
    let all = std::fs::read_dir("/sys/class/net").ok()?.flatten();
    let mut all = all.filter(|entry| {
        let text = std::fs::read_to_string(entry.path().join("ifindex")).unwrap_or_default();
        text.trim().parse() == Ok(index)
    });
    all.next()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// The groups it has joined: of those that this host has joined, the ones whose filter the kernel shows (net/ipv4/igmp.c, ip_mc_gsfget).
pub(super) fn capture(fd: &OwnedFd) -> Vec<Membership> {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut all: Vec<(u32, IpAddr)> = Vec::new();
    let mut index = 0;
    for line in text("/proc/thread-self/net/igmp").lines().skip(1) {
        let first = line.split_whitespace().next().unwrap_or_default();
        if line.starts_with('\t') {
            let group = u32::from_str_radix(first, 16).unwrap_or(0);
            all.push((index, Ipv4Addr::from(group.to_ne_bytes()).into()));
        } else {
            index = first.parse().unwrap_or(0);
        }
    }
    for line in text("/proc/thread-self/net/igmp6").lines() {
        let mut words = line.split_whitespace();
        let index = words.next().and_then(|word| word.parse().ok());
        let group = words
            .nth(1)
            .and_then(|hex| u128::from_str_radix(hex, 16).ok());
        all.extend(index.zip(group.map(|group| Ipv6Addr::from(group).into())));
    }
    let joined = |(index, group): (u32, IpAddr)| {
        let mut filter = vec![0u8; HEAD + SOURCES * 128];
        filter[..4].copy_from_slice(&index.to_ne_bytes());
        filter[140..144].copy_from_slice(&(SOURCES as u32).to_ne_bytes());
        match group {
            IpAddr::V4(ip) => {
                filter[8..10].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                filter[12..16].copy_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                filter[8..10].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                filter[16..32].copy_from_slice(&ip.octets());
            }
        }
        sockets::ask(fd, level(&filter), MCAST_MSFILTER, &mut filter).ok()?;
        filter.truncate(HEAD + 128 * word(&filter, 140) as usize);
        let interface = interface(index).unwrap_or_default();
        Some(Membership { interface, filter })
    };
    all.into_iter().filter_map(joined).collect()
}

pub(super) fn join(shell: &mut Shell, fd: u32, socket: &DatagramSocket) {
    for membership in &socket.memberships {
        let filter = &membership.filter;
        let level = level(filter) as u32;
        // struct group_req is how it begins.
        options::set_one(shell, fd, level, MCAST_JOIN_GROUP, &filter[..136]);
        if (word(filter, 136), word(filter, 140)) != (EXCLUDE, 0) {
            options::set_one(shell, fd, level, MCAST_MSFILTER as u32, filter);
        }
    }
}

/// What it is a member of, and why it cannot be here.
pub(super) fn check(socket: &DatagramSocket) -> Option<(String, String)> {
    let mut all = socket.memberships.iter();
    let lost = all.find(|m| {
        m.filter.len() < HEAD || interface(word(&m.filter, 0)).as_ref() != Some(&m.interface)
    })?;
    let what = format!(
        "a socket in a multicast group of interface {}",
        lost.interface
    );
    Some((
        what,
        "there is no interface of that name and number here".to_owned(),
    ))
}
