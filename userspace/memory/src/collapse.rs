//! Huge pages again, for memory that came in page by page.

use std::fs;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::huge::BLOCK;
use crate::{Error, Kind, Pagemap};

/// Bytes asked for in one call, as a signal does not interrupt it.
const STEP: u64 = 32 << 20;
/// include/uapi/asm-generic/mman-common.h (Linux 6.1).
const MADV_COLLAPSE: i32 = 25;

/// When the kernel gives memory huge pages by itself (Documentation/admin-guide/mm/transhuge.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePagePolicy {
    /// Everywhere but where a process has forbidden it.
    Always,
    /// Where a process asks for them.
    Asked,
    /// Nowhere.
    Never,
}

impl HugePagePolicy {
    /// What holds for this host.
    #[must_use]
    pub fn of_host() -> Self {
        let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        match setting.unwrap_or_default() {
            text if text.contains("[always]") => Self::Always,
            text if text.contains("[madvise]") => Self::Asked,
            _ => Self::Never,
        }
    }
}

/// Joins pages of process `pid` (also named by `pidfd`) to huge ones where all that belong to one are there in `ranges` of anonymous memory:
/// UFFDIO_COPY makes small pages only. The process may run, and change its memory: what is mapped there by then only gets advice.
///
/// # Errors
/// The kernel does not say which pages are there. Huge pages that are not to be had are none.
pub fn collapse(pid: u32, pidfd: BorrowedFd<'_>, ranges: &[Range<u64>]) -> Result<(), Error> {
    let pagemap = Pagemap::open(pid)?;
    let mut there = Vec::new();
    for range in ranges {
        pagemap.content(range.clone(), Kind::Anonymous, &mut there)?;
    }
    for run in there {
        let (mut at, end) = (run.start.next_multiple_of(BLOCK), run.end / BLOCK * BLOCK);
        while at < end {
            let part = at..end.min(at + STEP);
            // Gone, not allowed, an old kernel: the others will not do better.
            if matches!(
                advise(pidfd, &part),
                Err(Errno::ESRCH | Errno::EPERM | Errno::ENOSYS)
            ) {
                return Ok(());
            }
            at = part.end;
        }
    }
    Ok(())
}

/// Asks for huge pages in place of small ones in `range` of a process. Where a userfaultfd watches, holes stay holes
/// (`hpage_collapse_scan_pmd()` in mm/khugepaged.c).
pub(crate) fn advise(pidfd: BorrowedFd<'_>, range: &Range<u64>) -> Result<(), Errno> {
    let part = libc::iovec {
        iov_base: range.start as *mut libc::c_void,
        iov_len: (range.end - range.start) as usize,
    };
    // SAFETY: `part` is read only, and lives through the call; the range is one of another process.
    let done = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd.as_raw_fd(),
            &raw const part,
            1usize,
            MADV_COLLAPSE,
            0u32,
        )
    };
    Errno::result(done).map(drop)
}
