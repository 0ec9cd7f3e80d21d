//! What the kernel can do, found out by trying it on pages of our own.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};

use crate::kernel::{PageRegion, entry, is, pagemap_scan};
use crate::pagemap::Kind;
use crate::track::{self, WriteProtect, WriteTracker, Written};
use crate::{PAGE_SIZE, PageSet, SoftDirty, uffd, unshared};

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
    /// That of this kernel, found out once.
    pub(crate) fn of_kernel() -> Self {
        static METHOD: OnceLock<Method> = OnceLock::new();
        *METHOD.get_or_init(Self::probe)
    }

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

/// Three pages: one that was read, one that was written, and an untouched one. Between pages without access, so that no other
/// mapping merges with them.
struct Sample {
    start: NonNull<libc::c_void>,
    pagemap: File,
}

const PAGE: usize = PAGE_SIZE as usize;
const SAMPLE_BYTES: usize = 3 * PAGE;

impl Sample {
    fn new() -> Option<Self> {
        let pagemap = File::open("/proc/self/pagemap").ok()?;
        let length = NonZeroUsize::new(SAMPLE_BYTES + 2 * PAGE)?;
        // SAFETY: a new mapping where the kernel likes; nothing else lives there.
        let around =
            unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) };
        // SAFETY: the mapping just made is longer than a page.
        let start = unsafe { around.ok()?.cast::<u8>().add(PAGE) };
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: these pages lie in the mapping just made.
        unsafe { mprotect(start.cast(), SAMPLE_BYTES, access) }.ok()?;
        // SAFETY: both addresses lie in it too, and only this function knows them.
        unsafe {
            start.read_volatile();
            start.add(PAGE).write_volatile(1);
        }
        let start = start.cast();
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

    /// The entry of one of its pages; 0 where the kernel does not tell.
    fn entry(&self, page: u64) -> u64 {
        let (mut raw, number) = ([0; 8], self.address() / PAGE_SIZE + page);
        let read = self.pagemap.read_exact_at(&mut raw, number * 8);
        read.map_or(0, |()| u64::from_ne_bytes(raw))
    }

    fn zero_frame(&self) -> u64 {
        self.entry(0) & entry::FRAME
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody holds a reference into it. Should unmapping fail, five pages leak.
        let _ = unsafe {
            munmap(
                self.start.cast::<u8>().sub(PAGE).cast(),
                SAMPLE_BYTES + 2 * PAGE,
            )
        };
    }
}

/// How this kernel can tell which pages were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracking {
    /// By write protection that it lifts by itself.
    WriteProtect,
    /// By the soft-dirty bits of pages, for which the process has to stop.
    SoftDirty {
        /// Why not by write protection, for people.
        why: String,
    },
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
    TRACKING.get_or_init(|| {
        let why = match write_protect_works() {
            Ok(()) => return Tracking::WriteProtect,
            Err(why) => format!("userfaultfd write protection {why}"),
        };
        match soft_dirty_works() {
            Ok(()) => Tracking::SoftDirty { why },
            Err(other) => Tracking::None {
                why: format!("{why}, and the soft-dirty bit of pages {other}"),
            },
        }
    })
}

const MISSES: &str = "misses written pages on this kernel";

fn write_protect_works() -> Result<(), String> {
    let absent = |errno: Errno| format!("is not to be had here ({errno})");
    let fd = own_userfaultfd().map_err(absent)?;
    let sample = Sample::new().ok_or(Errno::ENOMEM).map_err(absent)?;
    sample.try_out(&mut WriteProtect::new(std::process::id(), fd))
}

/// Whether the soft-dirty bits of pages tell what was written.
///
/// # Errors
/// In what way they do not, for people.
pub fn soft_dirty_works() -> Result<(), String> {
    let sample = Sample::new().ok_or("cannot be tried: /proc/self/pagemap is closed")?;
    if sample.entry(1) & entry::FRAME == 0 {
        let why = "needs the frame numbers in /proc/PID/pagemap, which only CAP_SYS_ADMIN sees";
        return Err(why.to_owned());
    }
    sample.try_out(&mut SoftDirty::new(std::process::id()))
}

/// Whether write protection tells by itself where a page table is gone, or never was. `None` without write protection.
#[must_use]
pub fn reports_holes() -> Option<bool> {
    const BLOCK: usize = 2 << 20;
    let mut tracker = WriteProtect::new(std::process::id(), own_userfaultfd().ok()?);
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let length = NonZeroUsize::new(2 * BLOCK)?;
    // SAFETY: a new mapping where the kernel likes; nothing else lives there.
    let start = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }.ok()?;
    let block = (start.as_ptr() as usize).next_multiple_of(BLOCK) as u64;
    let area = block..block + BLOCK as u64;
    let areas = std::slice::from_ref(&area);
    // The first time it is new.
    let reported = [(); 2].map(|()| {
        let mut written = Written::default();
        tracker.collect(areas, false, &mut written).ok()?;
        Some(told(&written, area.start / PAGE_SIZE..area.end / PAGE_SIZE))
    });
    // SAFETY: the mapping is ours, and nobody holds a reference into it.
    let _ = unsafe { munmap(start, 2 * BLOCK) };
    reported[1]
}

/// Whether none of these pages is as it was.
fn told(written: &Written, pages: std::ops::Range<u64>) -> bool {
    let mut left = PageSet::from_iter(pages);
    written.subtract_from(&mut left);
    left.is_empty()
}

/// Flags of a frame in /proc/kpageflags that only a page has which no other process shares: of those that kernels have used for it
/// (`PG_anon_exclusive`, shown as `KPF_MAPPEDTODISK`, and `KPF_ANON_EXCLUSIVE`), what a fork clears and a write sets again. 0 where
/// the kernel does not tell.
pub(crate) fn unshared_flags() -> u64 {
    static FLAGS: OnceLock<u64> = OnceLock::new();
    *FLAGS.get_or_init(|| {
        const CANDIDATES: u64 = 1 << 34 | 1 << 47;
        let (Some(sample), Ok(file)) = (Sample::new(), File::open("/proc/kpageflags")) else {
            return 0;
        };
        let flags = || unshared::flags(&file, sample.entry(1) & entry::FRAME);
        let before = flags();
        fork();
        let shared = flags();
        // SAFETY: the second page of the sample.
        unsafe { sample.start.cast::<u8>().add(PAGE).write_volatile(2) };
        before & !shared & flags() & CANDIDATES
    })
}

/// Makes a child that ends at once, of which nobody hears: it has no exit signal.
fn fork() {
    // SAFETY: without flags it is fork(2), but for the handlers of the C library, which the child does not need: all it does is end.
    let child = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, 0) };
    }
    // SAFETY: takes no result.
    unsafe { libc::waitpid(child as i32, std::ptr::null_mut(), libc::__WALL) };
}

/// A userfaultfd of our own for [`WriteProtect`].
fn own_userfaultfd() -> Result<OwnedFd, Errno> {
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
    Errno::result(done).map(|_| fd)
}

impl Sample {
    /// Whether `tracker` finds a page that is new, one that was written, and one that was given back and read; and none that was
    /// left alone.
    fn try_out(&self, tracker: &mut dyn WriteTracker) -> Result<(), String> {
        let start = self.address();
        let areas = [start..start + SAMPLE_BYTES as u64];
        let page = start / PAGE_SIZE + 1;
        // SAFETY: the second page of the sample.
        let written_page = unsafe { self.start.cast::<u8>().add(PAGE) };
        let mut collect = || {
            let mut written = Written::default();
            let done = tracker.collect(&areas, false, &mut written);
            done.map_err(|error| format!("is not to be had here ({error})"))?;
            Ok::<_, String>(told(&written, page..page + 1))
        };
        if !collect()? {
            return Err(MISSES.to_owned());
        }
        if collect()? {
            return Err("takes pages for written that were not".to_owned());
        }
        // SAFETY: the page is in the sample, which only this function knows.
        unsafe { written_page.write_volatile(2) };
        if !collect()? {
            return Err(MISSES.to_owned());
        }
        // SAFETY: as above.
        unsafe {
            madvise(written_page.cast(), PAGE, MmapAdvise::MADV_DONTNEED)
                .map_err(|e| e.to_string())?;
            written_page.read_volatile();
        }
        let found = collect()?;
        let gone = tracker.vanished(&PageSet::from_iter([page]));
        if found || gone.is_ok_and(|gone| !gone.is_empty()) {
            Ok(())
        } else {
            Err("misses pages that were given back on this kernel".to_owned())
        }
    }
}
