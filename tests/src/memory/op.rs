//! The operations, and how the program is told of them.

/// A part of the address space in which operations happen.
#[derive(Debug)]
pub(super) struct ZoneInfo {
    /// What it is called in messages.
    pub(super) name: &'static str,
    /// Pages it has at most.
    pub(super) pages: usize,
}

/// Mappings are made and removed here.
pub(super) const ARENA: usize = 0;
/// Mappings of huge pages (hugetlbfs).
pub(super) const HUGE: usize = 1;
/// What brk(2) moves the end of.
pub(super) const HEAP: usize = 2;
/// The main thread's stack, which grows to its lowest touched page.
pub(super) const STACK: usize = 3;
/// Data of the executable.
pub(super) const DATA: usize = 4;

/// The zones, in the order of their numbers; the program has the same.
pub(super) const ZONES: [ZoneInfo; 5] = [
    zone("the arena", 4096),
    zone("the huge pages", 1024),
    zone("the heap", 256),
    zone("the stack", 256),
    zone("the data", 64),
];

const fn zone(name: &'static str, pages: usize) -> ZoneInfo {
    ZoneInfo { name, pages }
}

/// Pages of the file that is mapped privately.
pub(super) const FILE_PAGES: usize = 1024;

/// Pages in a huge page.
pub(super) const HUGE_PAGES: usize = 512;

/// Pages of a zone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Area {
    /// The zone's number.
    pub(super) zone: usize,
    /// The first page.
    pub(super) page: usize,
    /// How many.
    pub(super) count: usize,
}

impl Area {
    /// Whether page `page` of zone `zone` is one of them.
    pub(super) fn has(&self, zone: usize, page: usize) -> bool {
        self.zone == zone && (self.page..self.page + self.count).contains(&page)
    }

    /// The pages' numbers in the zone.
    pub(super) fn pages(&self) -> std::ops::Range<usize> {
        self.page..self.page + self.count
    }
}

/// What a new mapping is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    /// Private anonymous memory.
    Anonymous,
    /// The same with `MADV_HUGEPAGE`.
    Transparent,
    /// The file, privately, from this page on.
    File(usize),
    /// Shared anonymous memory.
    Shared,
    /// Private huge pages of hugetlbfs.
    Hugetlb,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Every page is filled anew.
    Write,
    /// One word of every page is written.
    Poke(u64),
    /// Every page is read.
    Read,
    /// Every page is written this many times, and then filled.
    Churn(u64),
    /// Every page is filled by read(2) from this page of the file on, perhaps past the page cache.
    Load(usize, bool),
    /// A mapping with these protection bits, over whatever was there.
    Map(Flavour, u8),
    /// munmap
    Unmap,
    /// mremap to so many pages at a page, with flags.
    Remap {
        /// The new place.
        to: usize,
        /// Pages there.
        count: usize,
        /// `MREMAP_*`
        flags: i32,
    },
    /// mprotect
    Protect(u8),
    /// madvise with an advice that must work.
    Advise(i32),
    /// madvise with an advice that changes no content and may fail.
    Hint(i32),
    /// brk, to so many pages.
    Break(usize),
    /// fork; the child has this number.
    Fork(usize),
    /// The process ends.
    Exit,
    /// The process executes its program again, and goes on with the next step.
    Exec,
}

/// One step of the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// The number of the process that takes it; the others pass over it.
    pub(super) actor: usize,
    /// Where.
    pub(super) area: Area,
    /// What happens there.
    pub(super) what: What,
}

/// madvise's advices and mremap's flags: those of include/uapi/asm-generic/mman-common.h and mman.h.
pub(super) mod flags {
    #![allow(missing_docs)] // As the kernel calls them.
    pub(in super::super) const MADV_DONTNEED: i32 = 4;
    pub(in super::super) const MADV_FREE: i32 = 8;
    pub(in super::super) const MADV_REMOVE: i32 = 9;
    pub(in super::super) const MADV_HUGEPAGE: i32 = 14;
    pub(in super::super) const MADV_NOHUGEPAGE: i32 = 15;
    pub(in super::super) const MADV_COLLAPSE: i32 = 25;
    pub(in super::super) const MADV_GUARD_INSTALL: i32 = 102;
    pub(in super::super) const MADV_GUARD_REMOVE: i32 = 103;
    pub(in super::super) const MREMAP_FIXED: i32 = 3;
    pub(in super::super) const MREMAP_DONTUNMAP: i32 = 7;
}

impl Step {
    /// As the program reads it: 64 bytes.
    pub(super) fn encode(&self, number: usize) -> Vec<u8> {
        let (kind, a, b, c): (u64, u64, u64, u64) = match self.what {
            What::Write => (0, 0, 0, 0),
            What::Poke(word) => (1, word, 0, 0),
            What::Read => (2, 0, 0, 0),
            What::Churn(rounds) => (3, rounds, 0, 0),
            What::Load(page, direct) => (4, page as u64, direct.into(), 0),
            What::Map(flavour, protection) => {
                let (flavour, page) = match flavour {
                    Flavour::Anonymous => (0, 0),
                    Flavour::Transparent => (1, 0),
                    Flavour::File(page) => (2, page),
                    Flavour::Shared => (3, 0),
                    Flavour::Hugetlb => (4, 0),
                };
                (5, flavour, protection.into(), page as u64)
            }
            What::Unmap => (6, 0, 0, 0),
            What::Remap { to, count, flags } => (7, to as u64, count as u64, flags as u64),
            What::Protect(protection) => (8, protection.into(), 0, 0),
            What::Advise(advice) => (9, advice as u64, 0, 0),
            What::Hint(advice) => (9, advice as u64, 1, 0),
            What::Break(pages) => (10, pages as u64, 0, 0),
            What::Fork(child) => (11, child as u64, 0, 0),
            What::Exit => (12, 0, 0, 0),
            What::Exec => (13, 0, 0, 0),
        };
        let area = self.area;
        let words = [
            kind | (self.actor as u64) << 32,
            area.zone as u64,
            area.page as u64,
            area.count as u64,
            a,
            b,
            c,
            number as u64,
        ];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Area { zone, page, count } = self.area;
        write!(f, "process {}: {:?}", self.actor, self.what)?;
        if count > 0 {
            let last = page + count - 1;
            write!(f, ", pages {page}..={last} of {}", ZONES[zone].name)?;
        }
        Ok(())
    }
}
