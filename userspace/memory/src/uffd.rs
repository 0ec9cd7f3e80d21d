//! userfaultfd(2): a process's page faults and write protection in the hands of another.
//!
//! A userfaultfd belongs to the address space of the task that made it, and acts on it whoever holds the descriptor; so it is
//! made inside the task and taken out of it. When the last descriptor closes, everything it did is undone and
//! missing pages read as zeros. Constants and structures are those of include/uapi/linux/userfaultfd.h.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// What `UFFDIO_API` is asked for (`UFFD_FEATURE_*`), as a set.
pub mod feature {
    /// Tell of forks, and hand over the child's userfaultfd.
    pub const EVENT_FORK: u64 = 1 << 1;
    /// Tell of mremap(2).
    pub const EVENT_REMAP: u64 = 1 << 2;
    /// Tell of `MADV_DONTNEED` and `MADV_REMOVE`.
    pub const EVENT_REMOVE: u64 = 1 << 3;
    /// Missing pages of shared memory too.
    pub const MISSING_SHMEM: u64 = 1 << 5;
    /// Tell of munmap(2).
    pub const EVENT_UNMAP: u64 = 1 << 6;
    /// Tell which thread faulted.
    pub const THREAD_ID: u64 = 1 << 8;
    /// Write protection of shared memory and hugetlb mappings too (Linux 5.19).
    pub const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    /// Write protection of pages not there yet (Linux 6.4).
    pub const WP_UNPOPULATED: u64 = 1 << 13;
    /// `UFFDIO_POISON` (Linux 6.6).
    pub const POISON: u64 = 1 << 14;
    /// Written pages lose their protection without anybody being asked (Linux 6.7).
    pub const WP_ASYNC: u64 = 1 << 15;
}

/// What of a mapping is handed over: `UFFDIO_REGISTER_MODE_*`, as a set.
pub mod mode {
    /// Faults on missing pages.
    pub const MISSING: u64 = 1;
    /// Writes to protected pages.
    pub const WP: u64 = 2;
}

/// `O_CLOEXEC | O_NONBLOCK`, for userfaultfd(2).
pub const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
/// `UFFD_USER_MODE_ONLY`, for userfaultfd(2): faults in the kernel raise SIGBUS instead of waiting (Linux 5.11).
pub const USER_MODE_ONLY: u64 = 1;
/// The request that must come first, with three words: [`API`], features (in and out), and ioctls (out).
pub const UFFDIO_API: u64 = 0xc018_aa3f;
/// The only version of the interface.
pub const API: u64 = 0xaa;

const UFFDIO_REGISTER: u32 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u32 = 0x8010_aa01;
const UFFDIO_WAKE: u32 = 0x8010_aa02;
const UFFDIO_COPY: u32 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u32 = 0xc020_aa04;
const UFFDIO_WRITEPROTECT: u32 = 0xc018_aa06;
const UFFDIO_POISON: u32 = 0xc020_aa08;

const COPY_MODE_WP: u64 = 2;
const WRITEPROTECT_MODE_WP: u64 = 1;

/// Somebody's userfaultfd, after its handshake. Addresses are those of its owner, page aligned.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

/// What a userfaultfd tells: `struct uffd_msg`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A thread waits for a page.
    Fault {
        /// The page's address.
        address: u64,
        /// It wants to write.
        write: bool,
        /// The thread, as we see it; 0 without `THREAD_ID`.
        tid: u32,
    },
    /// A child was forked, which has this new userfaultfd, a descriptor of ours.
    Fork(i32),
    /// A range was moved (mremap(2)).
    Remap {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// Bytes.
        length: u64,
    },
    /// The content of a range is being discarded.
    Remove(Range<u64>),
    /// A range was unmapped.
    Unmap(Range<u64>),
}

/// Bytes of `struct uffd_msg`.
pub const MESSAGE: usize = 32;

impl Message {
    /// Takes apart what read(2) gave; `None` for what this module does not know.
    #[must_use]
    pub fn parse(bytes: &[u8; MESSAGE]) -> Option<Self> {
        let word = |nth: usize| {
            let bytes = bytes[8 * nth..8 * nth + 8].try_into();
            u64::from_ne_bytes(bytes.unwrap_or_default())
        };
        Some(match bytes[0] {
            0x12 => Self::Fault {
                address: word(2) & !(crate::PAGE_SIZE - 1),
                write: word(1) & 1 == 1,
                tid: word(3) as u32,
            },
            0x13 => Self::Fork(word(1) as u32 as i32),
            0x14 => Self::Remap {
                from: word(1),
                to: word(2),
                length: word(3),
            },
            0x15 => Self::Remove(word(1)..word(2)),
            0x16 => Self::Unmap(word(1)..word(2)),
            _ => return None,
        })
    }
}

/// What of [`feature`] this kernel can do for us; an error where we may not handle faults of the kernel itself (EPERM without
/// `CAP_SYS_PTRACE`, unless the sysctl vm.unprivileged_userfaultfd is set) or there is no userfaultfd at all.
///
/// # Errors
/// See above.
pub fn features() -> Result<u64, Errno> {
    // SAFETY: no pointers are passed; the result is a new descriptor that we own.
    let uffd = unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_userfaultfd, FLAGS))?;
        Userfault::new(OwnedFd::from_raw_fd(fd as i32))
    };
    let mut arg = [API, 0, 0];
    uffd.ioctl(UFFDIO_API as u32, &mut arg)?;
    Ok(arg[1])
}

/// A request that was cut short: how many bytes were done before, and why it went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// Bytes done.
    pub done: u64,
    /// EEXIST: a page is there already. EAGAIN: an event waits to be read first. ENOENT: unmapped meanwhile. ESRCH: the address
    /// space is gone.
    pub errno: Errno,
}

impl Userfault {
    /// The userfaultfd that `fd` is open on.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Takes over `range`, which lies in touching mappings.
    ///
    /// # Errors
    /// EBUSY: another userfaultfd has part of it. EINVAL: a mapping there cannot be taken over, or nothing is mapped.
    /// ESRCH: the address space is gone (exec or exit).
    pub fn register(&self, range: &Range<u64>, mode: u64) -> Result<(), Errno> {
        let mut arg = [range.start, range.end - range.start, mode, 0];
        self.ioctl(UFFDIO_REGISTER, &mut arg)
    }

    /// Gives `range` back: waiting threads wake, protection is lifted.
    ///
    /// # Errors
    /// As [`Userfault::register`].
    pub fn unregister(&self, range: &Range<u64>) -> Result<(), Errno> {
        self.ioctl(
            UFFDIO_UNREGISTER,
            &mut [range.start, range.end - range.start],
        )
    }

    /// Wakes the threads that wait for pages of `range`.
    ///
    /// # Errors
    /// EINVAL for a bad range.
    pub fn wake(&self, range: &Range<u64>) -> Result<(), Errno> {
        self.ioctl(UFFDIO_WAKE, &mut [range.start, range.end - range.start])
    }

    /// Puts `data`, whole pages, where pages are missing from `address` on, write-protected if `protect`, and wakes who waits.
    ///
    /// # Errors
    /// [`Partial`]: what was done before stays.
    pub fn copy(&self, address: u64, data: &[u8], protect: bool) -> Result<(), Partial> {
        let length = data.len() as u64;
        let mode = if protect { COPY_MODE_WP } else { 0 };
        let mut arg = [address, data.as_ptr() as u64, length, mode, 0];
        let result = self.ioctl(UFFDIO_COPY, &mut arg);
        partial(result, arg[4], length)
    }

    /// Puts the shared page of zeros wherever a page of `range` is missing, and wakes who waits.
    ///
    /// # Errors
    /// [`Partial`].
    pub fn zero(&self, range: &Range<u64>) -> Result<(), Partial> {
        let length = range.end - range.start;
        let mut arg = [range.start, length, 0, 0];
        let result = self.ioctl(UFFDIO_ZEROPAGE, &mut arg);
        partial(result, arg[3], length)
    }

    /// Makes every touch of the missing pages of `range` raise SIGBUS, also for who waits.
    ///
    /// # Errors
    /// [`Partial`]; EINVAL on kernels before 6.6.
    pub fn poison(&self, range: &Range<u64>) -> Result<(), Partial> {
        let length = range.end - range.start;
        let mut arg = [range.start, length, 0, 0];
        let result = self.ioctl(UFFDIO_POISON, &mut arg);
        partial(result, arg[3], length)
    }

    /// Write-protects the pages of `range`, or lifts their protection.
    ///
    /// # Errors
    /// ENOENT: not registered for it. ESRCH: the address space is gone.
    pub fn write_protect(&self, range: &Range<u64>, protect: bool) -> Result<(), Errno> {
        let mode = if protect { WRITEPROTECT_MODE_WP } else { 0 };
        loop {
            let mut arg = [range.start, range.end - range.start, mode];
            match self.ioctl(UFFDIO_WRITEPROTECT, &mut arg) {
                // Mappings change under it at this very moment.
                Err(Errno::EAGAIN) => std::thread::yield_now(),
                other => return other,
            }
        }
    }

    /// Whether the address space it belongs to is still there: not exited, nor replaced by exec.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // Lifting the protection of a page only means that it counts as written; and nothing but a stack without address space
        // randomization lies there. Lower addresses than vm.mmap_min_addr are refused before anybody looks for the address space.
        let last = 0x7fff_ffff_e000;
        let mut arg = [last, crate::PAGE_SIZE, 0];
        self.ioctl(UFFDIO_WRITEPROTECT, &mut arg) != Err(Errno::ESRCH)
    }

    fn ioctl<const N: usize>(&self, request: u32, arg: &mut [u64; N]) -> Result<(), Errno> {
        // SAFETY: each request above takes a structure of N words, which `arg` is; addresses in it are those of another
        // process, but for the source of UFFDIO_COPY, which is a slice borrowed by the caller for the whole call.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), request as libc::Ioctl, arg.as_mut_ptr()) };
        Errno::result(result).map(drop)
    }
}

/// The kernel tells bytes done or a negative errno in the structure, and an errno too where it is incomplete.
fn partial(result: Result<(), Errno>, told: u64, length: u64) -> Result<(), Partial> {
    let done = if (told as i64) < 0 { 0 } else { told };
    match result {
        Ok(()) if done >= length => Ok(()),
        Ok(()) => Err(Partial {
            done,
            errno: Errno::EAGAIN,
        }),
        Err(errno) => Err(Partial { done, errno }),
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Userfault> for OwnedFd {
    fn from(uffd: Userfault) -> Self {
        uffd.0
    }
}
