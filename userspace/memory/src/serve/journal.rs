//! What the kernel told of one address space, kept where the death of its reader cannot harm it.
//!
//! The kernel wakes the thread that discards, moves or unmaps memory as soon as its message is read, and then copies the message
//! to the reader, even one that is being killed. So messages are read straight into a file that is mapped
//! shared: whoever comes next reads there what the pages of the address space have become.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::uffd::{MESSAGE, Message, Userfault};

/// Bytes that a journal may grow to, which take room only as far as they are written: some 30 million messages.
const LIMIT: u64 = 1 << 30;
/// A journal, open for writing by one server.
#[derive(Debug)]
pub(crate) struct Journal {
    map: NonNull<u8>,
    next: usize,
}

// SAFETY: the mapping belongs to this value alone and is used through `&mut self` only.
unsafe impl Send for Journal {}
// SAFETY: as above.
unsafe impl Sync for Journal {}

impl Journal {
    /// Begins the journal at `path`, or goes on with the one that is there; and what it says so far.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Vec<Message>)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        file.set_len(LIMIT)?;
        let mut journal = Self::map(&file)?;
        let mut messages = Vec::new();
        while let Some(message) = Message::parse(journal.slot(journal.next)) {
            // A fault stays in its slot when it was the last that was read; it comes again, if it still waits.
            if matches!(message, Message::Fault { .. }) {
                break;
            }
            messages.push(message);
            journal.next += 1;
        }
        Ok((journal, messages))
    }

    fn map(file: &File) -> io::Result<Self> {
        let length = NonZeroUsize::new(LIMIT as usize).unwrap_or(NonZeroUsize::MIN);
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes; nothing else lives there.
        let map = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self {
            map: map.cast(),
            next: 0,
        })
    }

    fn slot(&mut self, nth: usize) -> &mut [u8; MESSAGE] {
        debug_assert!((nth + 1) * MESSAGE <= LIMIT as usize);
        // SAFETY: slots lie within the mapping, and `&mut self` makes this the only reference into it.
        unsafe { &mut *self.map.as_ptr().add(nth * MESSAGE).cast() }
    }

    /// Messages kept so far.
    pub(crate) fn position(&self) -> usize {
        self.next
    }

    /// The next message of `uffd`, which is kept unless it is a fault. `None`: there is none now.
    pub(crate) fn read(&mut self, uffd: &Userfault) -> Result<Option<Message>, Errno> {
        if (self.next + 1) * MESSAGE > LIMIT as usize {
            return Err(Errno::ENOSPC);
        }
        let next = self.next;
        let slot = self.slot(next);
        // So that it is in memory: a server that is being killed cannot wait for it.
        slot[0] = 0;
        let length = match nix::unistd::read(uffd, slot) {
            Err(Errno::EAGAIN) => return Ok(None),
            other => other?,
        };
        let message = Message::parse(slot).filter(|_| length == MESSAGE);
        if matches!(message, Some(ref message) if !matches!(message, Message::Fault { .. })) {
            self.next += 1;
        }
        message.map(Some).ok_or(Errno::EPROTO)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives the borrow of `self`.
        let _ = unsafe { munmap(self.map.cast(), LIMIT as usize) };
    }
}
