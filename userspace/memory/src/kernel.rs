//! What this crate needs of the kernel's headers, which are often older than the running kernel.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `PAGEMAP_SCAN` of include/uapi/linux/fs.h (Linux 6.7): `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 0xc060_6610;

/// What a page is, as `PAGEMAP_SCAN` says it: `PAGE_IS_*` of include/uapi/linux/fs.h.
pub(crate) mod is {
    /// Was written since it was last write-protected, or never was protected.
    pub(crate) const WRITTEN: u64 = 1 << 1;
    /// Belongs to a file, or to shared memory.
    pub(crate) const FILE: u64 = 1 << 2;
    /// Is in memory.
    pub(crate) const PRESENT: u64 = 1 << 3;
    /// Is in swap, or a marker of the kernel's stands in its place.
    pub(crate) const SWAPPED: u64 = 1 << 4;
    /// Is the page of zeros that everybody shares.
    pub(crate) const ZERO: u64 = 1 << 5;
    /// Is part of a huge page that one entry leads to.
    pub(crate) const HUGE: u64 = 1 << 6;
    /// Raises SIGSEGV (`MADV_GUARD_INSTALL`, Linux 6.13; told since 6.16).
    pub(crate) const GUARD: u64 = 1 << 8;
}

/// The bits of an entry of /proc/PID/pagemap: Documentation/admin-guide/mm/pagemap.rst.
pub(crate) mod entry {
    /// Page frame number, 0 without `CAP_SYS_ADMIN`; only where `PRESENT`.
    pub(crate) const FRAME: u64 = (1 << 55) - 1;
    pub(crate) const SOFT_DIRTY: u64 = 1 << 55;
    pub(crate) const GUARD: u64 = 1 << 58;
    pub(crate) const FILE: u64 = 1 << 61;
    pub(crate) const SWAPPED: u64 = 1 << 62;
    pub(crate) const PRESENT: u64 = 1 << 63;
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct PageRegion {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Which pages a scan looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Query {
    /// Categories that a page must not be.
    pub(crate) not: u64,
    /// Of these a page must be at least one.
    pub(crate) any: u64,
}

impl Query {
    /// The rule of pagemap_scan_is_interesting_page() in fs/proc/task_mmu.c.
    pub(crate) fn matches(self, categories: u64) -> bool {
        categories & self.not == 0 && categories & self.any != 0
    }
}

/// `PM_SCAN_WP_MATCHING`: write-protect what is found in the same step.
const PROTECT: u64 = 1 << 0;
/// `PM_SCAN_CHECK_WPASYNC`: fail with EPERM at a mapping that is not registered with a userfaultfd for `WP_ASYNC`.
const CHECK_WPASYNC: u64 = 1 << 1;

/// Which written pages are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// All that may have been written, holes among them; nothing is protected. These masks have a fast path in
    /// pagemap_scan_pmd_entry() in fs/proc/task_mmu.c, which takes empty entries as written; newer kernels
    /// (pagemap_scan_pte_hole()) also tell of holes where no page table is, and would make page tables to protect them.
    Fast,
    /// Pages that are there, protected in the same step.
    Protect {
        /// Categories that a page must not be.
        not: u64,
    },
}

/// Finds written pages of `start..end`. Returns how many regions it has filled in and the address where it stopped. Fails with
/// EPERM when it meets a mapping that is not watched.
pub(crate) fn written(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    look: Look,
    regions: &mut [PageRegion],
) -> Result<(usize, u64), Errno> {
    let mut arg = PmScanArg {
        flags: CHECK_WPASYNC,
        start,
        end,
        category_mask: is::WRITTEN,
        return_mask: is::WRITTEN,
        ..PmScanArg::default()
    };
    if let Look::Protect { not } = look {
        arg.flags |= PROTECT;
        arg.category_anyof_mask = is::PRESENT | is::SWAPPED;
        arg.category_inverted = not;
        arg.category_mask |= arg.category_inverted;
    }
    scan(pagemap, arg, regions)
}

/// Finds pages of `start..end` that match, at most `max_pages` (0: any number).
/// Returns how many regions it has filled in and the address where it stopped. Categories in `told` are
/// reported, and regions that differ in them kept apart.
pub(crate) fn pagemap_scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: Query,
    max_pages: u64,
    told: u64,
    regions: &mut [PageRegion],
) -> Result<(usize, u64), Errno> {
    scan(
        pagemap,
        PmScanArg {
            start,
            end,
            max_pages,
            category_inverted: query.not,
            category_mask: query.not,
            category_anyof_mask: query.any,
            return_mask: told,
            ..PmScanArg::default()
        },
        regions,
    )
}

fn scan(
    pagemap: BorrowedFd<'_>,
    mut arg: PmScanArg,
    regions: &mut [PageRegion],
) -> Result<(usize, u64), Errno> {
    arg.size = size_of::<PmScanArg>() as u64;
    arg.vec = regions.as_mut_ptr() as u64;
    arg.vec_len = regions.len() as u64;
    loop {
        // SAFETY: `arg` is the structure this request takes, of the size it names; `vec` and `vec_len` describe
        // `regions`, which is borrowed mutably for the call and holds plain numbers.
        let filled = unsafe {
            libc::ioctl(
                pagemap.as_raw_fd(),
                PAGEMAP_SCAN as libc::Ioctl,
                &raw mut arg,
            )
        };
        match Errno::result(filled) {
            Ok(filled) => return Ok((filled as usize, arg.walk_end)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
