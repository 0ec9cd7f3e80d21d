//! Each test looks at a child process that has laid out its memory and waits.

mod copy;
mod pagemap;
mod track;

use std::io::Read;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::OwnedFd;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pause, pipe, write};

use crate::PAGE_SIZE;

/// Addresses that a child lays out; nothing of ours is there.
pub(super) struct Region {
    start: std::ptr::NonNull<libc::c_void>,
    pages: usize,
}

impl Region {
    /// Private anonymous memory, readable and writable, aligned to 2 MiB, in small pages.
    pub(super) fn new(pages: usize) -> Self {
        let huge = 512;
        let length = NonZeroUsize::new((pages + huge) * PAGE_SIZE as usize).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes.
        let start = unsafe {
            mmap_anonymous(
                None,
                length,
                prot,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
            )
        };
        let start = start.unwrap();
        // Whatever this machine makes of memory that says nothing.
        // SAFETY: the mapping just made.
        unsafe { libc::madvise(start.as_ptr(), length.get(), libc::MADV_NOHUGEPAGE) };
        let aligned = (start.as_ptr() as usize).next_multiple_of(huge * PAGE_SIZE as usize);
        Self {
            start: std::ptr::NonNull::new(aligned as *mut _).unwrap(),
            pages,
        }
    }

    pub(super) fn address(&self, page: usize) -> u64 {
        self.start.as_ptr() as u64 + page as u64 * PAGE_SIZE
    }

    pub(super) fn range(&self, pages: Range<usize>) -> Range<u64> {
        self.address(pages.start)..self.address(pages.end)
    }

    pub(super) fn all(&self) -> Range<u64> {
        self.range(0..self.pages)
    }

    /// Writes `byte` all over a page.
    pub(super) fn fill(&self, page: usize, byte: u8) {
        assert!(page < self.pages);
        // SAFETY: the page lies in the region, which is mapped and which nothing else uses.
        unsafe {
            self.start
                .cast::<u8>()
                .add(page * PAGE_SIZE as usize)
                .write_bytes(byte, PAGE_SIZE as usize);
        };
    }

    /// Reads a page's first byte.
    pub(super) fn look(&self, page: usize) -> u8 {
        assert!(page < self.pages);
        // SAFETY: as in `fill`.
        unsafe {
            self.start
                .cast::<u8>()
                .add(page * PAGE_SIZE as usize)
                .read_volatile()
        }
    }

    pub(super) fn protect(&self, pages: Range<usize>, prot: ProtFlags) {
        let start = self.range(pages.clone());
        let at = std::ptr::NonNull::new(start.start as *mut _).unwrap();
        // SAFETY: only pages of the region.
        unsafe { nix::sys::mman::mprotect(at, pages.len() * PAGE_SIZE as usize, prot) }.unwrap();
    }

    /// `madvise(2)` by number, for advice newer than the libraries; false where the kernel does not know it.
    pub(super) fn advise(&self, pages: Range<usize>, advice: i32) -> bool {
        let start = self.range(pages.clone());
        // SAFETY: only pages of the region, whose content nobody relies on.
        unsafe {
            libc::madvise(
                start.start as *mut _,
                pages.len() * PAGE_SIZE as usize,
                advice,
            ) == 0
        }
    }

    /// Puts another mapping in the place of `pages`; `fd` as mmap(2) takes it. False when the kernel refuses.
    pub(super) fn map(&self, pages: Range<usize>, prot: i32, flags: i32, fd: i32) -> bool {
        let start = self.range(pages.clone()).start as *mut libc::c_void;
        let length = pages.len() * PAGE_SIZE as usize;
        // SAFETY: only pages of the region are replaced.
        unsafe {
            libc::mmap(start, length, prot, flags | libc::MAP_FIXED, fd, 0) != libc::MAP_FAILED
        }
    }
}

/// A child that has run `setup` and waits to be killed.
pub(super) struct Child(Pid);

impl Child {
    /// `setup` runs in a copy of a process with threads: system calls and memory accesses only.
    pub(super) fn new(setup: impl FnOnce()) -> Self {
        Self::acting(setup, || {})
    }

    /// The same, but goes on with `act`, of which `setup`'s promise holds too, before it waits.
    pub(super) fn acting(setup: impl FnOnce(), act: impl FnOnce()) -> Self {
        let (ready, done): (OwnedFd, OwnedFd) = pipe().unwrap();
        // SAFETY: the child does nothing but `setup`, as promised above, write(2) and pause(2).
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                setup();
                let _ = write(&done, b"r");
                act();
                loop {
                    pause();
                }
            }
            ForkResult::Parent { child } => {
                drop(done);
                let child = Self(child);
                std::fs::File::from(ready).read_exact(&mut [0]).unwrap();
                child
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.as_raw() as u32
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}
