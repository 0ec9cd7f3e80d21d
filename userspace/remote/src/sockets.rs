//! System calls about sockets, as safe functions: options, names, what waits to be read, and what the kernel tells of them all.

use std::ffi::c_void;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

fn check(result: i64) -> io::Result<usize> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as usize)
    }
}

/// An option's value, at most `length` bytes of it (getsockopt(2)).
pub fn option(fd: &OwnedFd, level: i32, name: i32, length: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; length];
    let mut size = length as libc::socklen_t;
    let at = value.as_mut_ptr().cast::<c_void>();
    // SAFETY: the buffer is as long as `size` says.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut size) };
    check(i64::from(result))?;
    value.truncate(size as usize);
    Ok(value)
}

/// An option whose value says what is asked for (getsockopt(2)).
pub fn ask(fd: &OwnedFd, level: i32, name: i32, value: &mut [u8]) -> io::Result<()> {
    let mut size = value.len() as libc::socklen_t;
    let at = value.as_mut_ptr().cast();
    // SAFETY: `value` has room for `size` bytes.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut size) };
    check(i64::from(result)).map(drop)
}

/// Sets an option (setsockopt(2)).
pub fn set_option(fd: &OwnedFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let at = value.as_ptr().cast::<c_void>();
    // SAFETY: the buffer is as long as said.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            at,
            value.len() as libc::socklen_t,
        )
    };
    check(i64::from(result)).map(|_| ())
}

/// The classic BPF program that filters what a socket receives (SO_ATTACH_FILTER), 8 bytes an instruction; empty without one.
///
/// # Errors
/// EACCES for eBPF programs.
pub fn filter(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    // Lengths are in instructions (net/core/filter.c, sk_get_filter).
    let ask = |at: *mut c_void, room: u32| {
        let mut count: libc::socklen_t = room;
        let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
        // SAFETY: `at` has room for as many instructions as `count` says.
        let result = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut count) };
        check(i64::from(result)).map(|_| count)
    };
    let count = ask(std::ptr::null_mut(), 0)?;
    let mut instructions = vec![0u64; count as usize];
    if count != 0 {
        ask(instructions.as_mut_ptr().cast(), count)?;
    }
    Ok(instructions
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect())
}

/// A new socket of our own.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed; the result is a new descriptor that we own.
    unsafe {
        let fd = libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol);
        check(i64::from(fd))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The address a socket is bound to, or that of its peer, as the kernel's `struct sockaddr`.
pub fn name(fd: &OwnedFd, of_peer: bool) -> io::Result<Vec<u8>> {
    // SAFETY: sockaddr_storage is plain bytes.
    let mut address: libc::sockaddr_storage = unsafe { zeroed() };
    let mut size = size_of_val(&address) as libc::socklen_t;
    let at = (&raw mut address).cast::<libc::sockaddr>();
    // SAFETY: the buffer is as long as `size` says.
    let result = unsafe {
        if of_peer {
            libc::getpeername(fd.as_raw_fd(), at, &raw mut size)
        } else {
            libc::getsockname(fd.as_raw_fd(), at, &raw mut size)
        }
    };
    check(i64::from(result))?;
    let size = (size as usize).min(size_of_val(&address));
    // SAFETY: so many bytes of the live address.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const address).cast::<u8>(), size) };
    Ok(bytes.to_vec())
}

/// A message that waits in a socket.
#[derive(Debug, Default)]
pub struct Peeked {
    /// As much as there was room for.
    pub data: Vec<u8>,
    /// Its whole length (of datagrams).
    pub length: usize,
    /// The sender's address; empty when it has none.
    pub from: Vec<u8>,
    /// Descriptors in it, opened for us too.
    pub descriptors: Vec<OwnedFd>,
    /// The sender's pid (as we see it), uid and gid.
    pub credentials: Option<(i32, u32, u32)>,
}

/// Looks at what waits in a socket without taking it out (recvmsg(2), MSG_PEEK); `flags` are added.
///
/// # Errors
/// EAGAIN when nothing waits.
pub fn peek(fd: &OwnedFd, room: usize, flags: i32) -> io::Result<Peeked> {
    look(fd, room, flags, 1)
}

/// The same, but of a stream only what was sent in pieces that fit into `room` as a whole.
///
/// # Errors
/// EFAULT when the first piece does not fit.
pub fn peek_whole(fd: &OwnedFd, room: usize) -> io::Result<Peeked> {
    // The kernel fails to copy a piece that reaches into what is not there, and gives those before it (net/unix/af_unix.c,
    // unix_stream_read_generic).
    look(fd, room, 0, 2)
}

fn look(fd: &OwnedFd, room: usize, flags: i32, vectors: usize) -> io::Result<Peeked> {
    let mut data = vec![0u8; room];
    let mut control = vec![0u64; 512];
    // SAFETY: sockaddr_storage is plain bytes.
    let mut from: libc::sockaddr_storage = unsafe { zeroed() };
    let mut vector = [
        libc::iovec {
            iov_base: data.as_mut_ptr().cast(),
            iov_len: room,
        },
        // Nothing can be mapped at so low an address.
        libc::iovec {
            iov_base: std::ptr::without_provenance_mut(1),
            iov_len: 4000,
        },
    ];
    // SAFETY: msghdr is plain data.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of_val(&from) as libc::socklen_t;
    message.msg_iov = vector.as_mut_ptr();
    message.msg_iovlen = vectors as _;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control.as_slice()) as _;
    let flags = flags | libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header describes live buffers by their own lengths, and one that the kernel cannot write to.
    let length = check(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) } as i64)?;
    let mut peeked = Peeked {
        length,
        ..Default::default()
    };
    data.truncate(length.min(room));
    peeked.data = data;
    let named = (message.msg_namelen as usize).min(size_of_val(&from));
    // SAFETY: so many bytes of the live address.
    peeked.from =
        unsafe { std::slice::from_raw_parts((&raw const from).cast::<u8>(), named) }.to_vec();
    // SAFETY: the kernel filled the control buffer with well-formed headers, which the macros walk.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            let length = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
            let body = std::slice::from_raw_parts(libc::CMSG_DATA(header), length);
            let word =
                |at: usize| i32::from_ne_bytes(body[at..at + 4].try_into().unwrap_or_default());
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    for nth in 0..length / 4 {
                        peeked.descriptors.push(OwnedFd::from_raw_fd(word(4 * nth)));
                    }
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if length >= 12 => {
                    peeked.credentials = Some((word(0), word(4) as u32, word(8) as u32));
                }
                // SCM_PIDFD: a descriptor as well, of no use here.
                (libc::SOL_SOCKET, 4) if length >= 4 && word(0) >= 0 => {
                    drop(OwnedFd::from_raw_fd(word(0)));
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::other("more ancillary data than fits"));
    }
    Ok(peeked)
}

/// Sends what there is room for; how much that was (send(2)).
///
/// # Errors
/// EAGAIN when there is none.
pub fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the buffer is as long as said.
    let sent = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    check(sent as i64)
}

/// Asks the kernel about sockets (sock_diag(7)): one request, the payloads of all answers.
pub fn diagnose(request: &[u8], all: bool) -> io::Result<Vec<Vec<u8>>> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    exchange(SOCK_DIAG_BY_FAMILY, request, all)
}

/// Another request about sockets, which is only acknowledged (SOCK_DESTROY).
pub fn request(kind: u16, request: &[u8]) -> io::Result<()> {
    exchange(kind, request, false).map(|_| ())
}

fn exchange(kind: u16, request: &[u8], all: bool) -> io::Result<Vec<Vec<u8>>> {
    let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG)?;
    let more = if all {
        libc::NLM_F_DUMP
    } else {
        libc::NLM_F_ACK
    };
    let flags = libc::NLM_F_REQUEST | more;
    // struct nlmsghdr: length, type, flags, sequence, pid.
    let mut message = ((request.len() + 16) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(request);
    // SAFETY: the buffer is as long as said.
    check(unsafe { libc::send(fd.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) } as i64)?;
    let mut answers = Vec::new();
    loop {
        let mut buffer = vec![0u8; 64 << 10];
        // SAFETY: the buffer is as long as said.
        let n =
            check(
                unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) }
                    as i64,
            )?;
        let mut rest = &buffer[..n];
        while rest.len() >= 16 {
            let word =
                |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap_or_default());
            let length = (word(0) as usize).clamp(16, rest.len());
            match i32::from(word(4) as u16) {
                libc::NLMSG_DONE => return Ok(answers),
                libc::NLMSG_ERROR => {
                    return match word(16) as i32 {
                        0 => Ok(answers),
                        error => Err(io::Error::from_raw_os_error(-error)),
                    };
                }
                _ => answers.push(rest[16..length].to_vec()),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

/// The attributes of a netlink message (netlink(7)), by type.
pub fn attributes(mut rest: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut attributes = Vec::new();
    while rest.len() >= 4 {
        let length = u16::from_ne_bytes([rest[0], rest[1]]) as usize;
        let length = length.clamp(4, rest.len());
        // The two highest bits of the type are flags.
        let kind = u16::from_ne_bytes([rest[2], rest[3]]) & 0x3fff;
        attributes.push((kind, rest[4..length].to_vec()));
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded() {
        let bytes = [5, 0, 1, 0, 9, 0, 0, 0, 8, 0, 2, 0x80, 1, 2, 3, 4];
        assert_eq!(attributes(&bytes), [(1, vec![9]), (2, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn peeking_takes_nothing() {
        use std::io::Write as _;
        let (mut a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        a.write_all(b"word").unwrap();
        let b = OwnedFd::from(b);
        for _ in 0..2 {
            assert_eq!(peek(&b, 100, 0).unwrap().data, b"word");
        }
    }
}
