//! What the kernel can do, found out by trying it on pages of our own.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::kernel::{PageRegion, entry, is, pagemap_scan};
use crate::pagemap::Kind;
use crate::track::{self, WriteProtect, WriteTracker, Written};
use crate::{PAGE_SIZE, uffd};

/// How this kernel tells what its pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// The ioctl `PAGEMAP_SCAN` (Linux 6.7), which passes over holes at no cost.
    Scan {
        /// It knows guard pages.
        guards: bool,
    },
    /// One entry of eight bytes for each page.
    Entries {
        /// The frame of the shared page of zeros; 0 where frames are hidden from us.
        zero: u64,
    },
}

impl Method {
    pub(crate) fn probe() -> Self {
        let Some(sample) = Sample::new() else {
            return Self::Entries { zero: 0 };
        };
        if sample.scan_works(is::GUARD) {
            Self::Scan { guards: true }
        } else if sample.scan_works(0) {
            Self::Scan { guards: false }
        } else {
            Self::Entries {
                zero: sample.zero_frame(),
            }
        }
    }

    /// As on a kernel without `PAGEMAP_SCAN`.
    #[cfg(test)]
    pub(crate) fn entries() -> Self {
        Self::Entries {
            zero: Sample::new().map_or(0, |sample| sample.zero_frame()),
        }
    }
}

/// Three pages: one that was read, one that was written, and an untouched one.
struct Sample {
    start: NonNull<libc::c_void>,
    pagemap: File,
}

const SAMPLE_BYTES: usize = 3 * PAGE_SIZE as usize;

impl Sample {
    fn new() -> Option<Self> {
        let pagemap = File::open("/proc/self/pagemap").ok()?;
        let length = NonZeroUsize::new(SAMPLE_BYTES)?;
        // SAFETY: a new mapping where the kernel likes; nothing else lives there.
        let start = unsafe {
            mmap_anonymous(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )
        }
        .ok()?;
        let bytes = start.cast::<u8>();
        // SAFETY: both addresses lie in the mapping just made, which only this function knows.
        unsafe {
            bytes.read_volatile();
            bytes.add(PAGE_SIZE as usize).write_volatile(1);
        }
        Some(Self { start, pagemap })
    }

    fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// The ioctl finds the written page and nothing else, when it is also told of pages that are not to be `not`.
    fn scan_works(&self, not: u64) -> bool {
        let mut query = Kind::Anonymous.query();
        query.not = query.not & !is::GUARD | not;
        let mut regions = [PageRegion::default(); 4];
        let end = self.address() + SAMPLE_BYTES as u64;
        let found = pagemap_scan(
            self.pagemap.as_fd(),
            self.address(),
            end,
            query,
            0,
            0,
            &mut regions,
        );
        let written = self.address() + PAGE_SIZE;
        found.is_ok_and(|(filled, stopped)| {
            filled == 1
                && stopped == end
                && (regions[0].start, regions[0].end) == (written, written + PAGE_SIZE)
        })
    }

    fn zero_frame(&self) -> u64 {
        let mut raw = [0; 8];
        match self
            .pagemap
            .read_exact_at(&mut raw, self.address() / PAGE_SIZE * 8)
        {
            Ok(()) => u64::from_ne_bytes(raw) & entry::FRAME,
            Err(_) => 0,
        }
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody holds a reference into it. Should unmapping fail, three pages leak.
        let _ = unsafe { munmap(self.start, SAMPLE_BYTES) };
    }
}

/// How this kernel can tell which pages were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracking {
    /// By write protection that it lifts by itself.
    WriteProtect,
    /// Not at all, and why.
    None {
        /// For people.
        why: String,
    },
}

/// Tries on pages of our own whether written pages are found, and pages that were not written are not.
#[must_use]
pub fn tracking() -> &'static Tracking {
    static TRACKING: OnceLock<Tracking> = OnceLock::new();
    TRACKING.get_or_init(|| match write_protect_works() {
        Ok(true) => Tracking::WriteProtect,
        Ok(false) => Tracking::None {
            why: "write protection misses written pages on this kernel".into(),
        },
        Err(errno) => Tracking::None {
            why: format!("userfaultfd write protection is not to be had here ({errno})"),
        },
    })
}

fn write_protect_works() -> Result<bool, Errno> {
    let sample = Sample::new().ok_or(Errno::ENOSYS)?;
    // SAFETY: takes flags, gives a descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, uffd::FLAGS) };
    let fd = Errno::result(fd)?;
    // SAFETY: a descriptor just made, which nobody else knows.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = [uffd::API, track::FEATURES, 0];
    // SAFETY: the request takes a structure of three words, which `api` is.
    let done = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            uffd::UFFDIO_API as libc::Ioctl,
            api.as_mut_ptr(),
        )
    };
    Errno::result(done)?;
    let mut tracker = WriteProtect::new(std::process::id(), fd);
    let start = sample.address();
    let area = start..start + SAMPLE_BYTES as u64;
    let mut collect = || {
        let mut written = Written::default();
        let done = tracker.collect(std::slice::from_ref(&area), &mut written);
        done.map(|()| written).map_err(|_| Errno::EPROTO)
    };
    let first = collect()?;
    let idle = collect()?;
    // SAFETY: the address lies in the mapping of `sample`, which only this function knows.
    unsafe {
        sample
            .start
            .cast::<u8>()
            .add(PAGE_SIZE as usize)
            .write_volatile(2)
    };
    let after = collect()?;
    let page = start / PAGE_SIZE + 1;
    Ok(first.whole == [area.clone()]
        && !idle.pages.contains(page)
        && idle.whole.is_empty()
        && after.pages.contains(page)
        && after.whole.is_empty())
}
