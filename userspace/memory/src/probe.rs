//! What the kernel can do, found out by trying it on pages of our own.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::PAGE_SIZE;
use crate::kernel::{PageRegion, entry, is, pagemap_scan};
use crate::pagemap::Kind;

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
