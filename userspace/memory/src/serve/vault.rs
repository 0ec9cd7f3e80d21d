//! A place to keep descriptors that outlives every process of ours: the queue of a socket that the job's processes hold.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes for messages in the queue; each takes about one kilobyte.
const ROOM: i32 = 64 << 20;
/// include/uapi/asm-generic/socket.h
const SO_PEEK_OFF: i32 = 42;

/// Both ends of a Unix socket pair of type SOCK_SEQPACKET. What was sent and is not received stays open while anybody holds the
/// receiving end.
#[derive(Debug)]
pub struct Vault {
    receiver: OwnedFd,
    sender: OwnedFd,
}

/// What is known of a kept descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its own number.
    pub number: u32,
    /// The number of the one it was forked from, and how many messages had been read from that one by then.
    pub parent: Option<(u32, u64)>,
}

impl Label {
    const LENGTH: usize = 16;

    fn to_bytes(self) -> [u8; Self::LENGTH] {
        let (parent, at) = self.parent.unwrap_or((u32::MAX, 0));
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&self.number.to_ne_bytes());
        bytes[4..8].copy_from_slice(&parent.to_ne_bytes());
        bytes[8..].copy_from_slice(&at.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let at = u64::from(word(8)) | u64::from(word(12)) << 32;
        Self {
            number: word(0),
            parent: (word(4) != u32::MAX).then_some((word(4), at)),
        }
    }
}

/// Room for one descriptor in a control message.
#[repr(C, align(8))]
struct Control([u8; 64]);

impl Vault {
    /// Two ends of one pair.
    #[must_use]
    pub fn new(receiver: OwnedFd, sender: OwnedFd) -> Self {
        // Without the right to more, there is room for some hundred.
        for option in [libc::SO_SNDBUF, libc::SO_SNDBUFFORCE] {
            let _ = set(&sender, option, ROOM);
        }
        Self { receiver, sender }
    }

    /// The end to receive from.
    #[must_use]
    pub fn receiver(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }

    /// The end to send to.
    #[must_use]
    pub fn sender(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }

    /// Keeps a duplicate of `fd`.
    ///
    /// # Errors
    /// EAGAIN or ETOOMANYREFS: there is no more room.
    pub fn keep(&self, label: Label, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut data = label.to_bytes();
        let mut control = Control([0; 64]);
        let (mut part, mut message) = message(&mut data, &mut control);
        message.msg_iov = &raw mut part;
        // SAFETY: `message` describes live buffers; the control buffer has room for a header and one descriptor.
        let sent = unsafe {
            message.msg_controllen = libc::CMSG_SPACE(4) as usize;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(header)
                .cast::<i32>()
                .write_unaligned(fd.as_raw_fd());
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            libc::sendmsg(self.sender.as_raw_fd(), &raw const message, flags)
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Duplicates of all that is kept, in the order in which it was given.
    ///
    /// # Errors
    /// EMFILE: more than we may have open.
    pub fn contents(&self) -> io::Result<Vec<(Label, OwnedFd)>> {
        set(&self.receiver, SO_PEEK_OFF, 0)?;
        let mut found = Vec::new();
        while let Some(one) = self.receive(libc::MSG_PEEK)? {
            found.push(one);
        }
        Ok(found)
    }

    /// Lets go of everything.
    pub fn empty(&self) {
        let _ = set(&self.receiver, SO_PEEK_OFF, -1);
        while let Ok(Some(_)) = self.receive(0) {}
    }

    fn receive(&self, flags: i32) -> io::Result<Option<(Label, OwnedFd)>> {
        let mut data = [0; Label::LENGTH];
        let mut control = Control([0; 64]);
        let (mut part, mut message) = message(&mut data, &mut control);
        message.msg_iov = &raw mut part;
        let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: `message` describes live buffers of the lengths given.
        let got = unsafe { libc::recvmsg(self.receiver.as_raw_fd(), &raw mut message, flags) };
        match got {
            ..0 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                error => return Err(error),
            },
            0 => return Ok(None),
            _ => {}
        }
        // SAFETY: the kernel has filled in `message`; a descriptor that it gave us is ours.
        let fd = unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
                return Err(io::ErrorKind::InvalidData.into());
            }
            OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned())
        };
        Ok(Some((Label::from_bytes(data), fd)))
    }
}

fn message(data: &mut [u8], control: &mut Control) -> (libc::iovec, libc::msghdr) {
    let part = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: msghdr is plain numbers and pointers, for which zeros are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    (part, message)
}

fn set(socket: &OwnedFd, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the option takes one int, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::{Read, Write};

    fn label(number: u32) -> Label {
        let parent = (number.is_multiple_of(3)).then_some((number / 2, 1 << 40 | 5));
        Label { number, parent }
    }

    #[test]
    fn what_is_kept_outlives_its_holder() {
        let (receiver, sender) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let elsewhere = receiver.try_clone().unwrap();
        let vault = Vault::new(receiver, sender.try_clone().unwrap());
        let mut writers = Vec::new();
        for number in 0..600 {
            let (read, write) = nix::unistd::pipe().unwrap();
            vault.keep(label(number), read.as_fd()).unwrap();
            if number % 100 == 7 {
                writers.push((number, write));
            }
        }
        drop(vault);
        let vault = Vault::new(elsewhere, sender);
        for _ in 0..2 {
            let mut found = vault.contents().unwrap();
            assert!(found.iter().map(|kept| kept.0).eq((0..600).map(label)));
            for (number, write) in &writers {
                let (_, read) =
                    found.swap_remove(found.iter().position(|f| f.0.number == *number).unwrap());
                std::fs::File::from(write.try_clone().unwrap())
                    .write_all(&[*number as u8])
                    .unwrap();
                let mut byte = [0];
                std::fs::File::from(read).read_exact(&mut byte).unwrap();
                assert_eq!(byte[0], *number as u8);
            }
        }
        vault.empty();
        assert!(vault.contents().unwrap().is_empty());
    }
}
