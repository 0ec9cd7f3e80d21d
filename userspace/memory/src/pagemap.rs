//! Which pages of a stopped process hold content.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use crate::kernel::{self, PageRegion, Query, entry, is};
use crate::probe::Method;
use crate::{Error, PAGE_SIZE, pages_in, push_run};

/// What a private mapping is made of, and so which of its pages are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Private anonymous memory: what was written.
    Anonymous,
    /// A private mapping of a file: the pages that are no longer the file's.
    PrivateFile,
    /// Private anonymous memory in pages of hugetlbfs: what was touched.
    Huge,
}

impl Kind {
    pub(crate) fn query(self) -> Query {
        let not = match self {
            // The shared page of zeros reads as an untouched page does.
            Kind::Anonymous | Kind::Huge => is::GUARD | is::ZERO,
            // Here it would hide the file's content, so it counts.
            Kind::PrivateFile => is::GUARD | is::FILE,
        };
        Query {
            not,
            any: is::PRESENT | is::SWAPPED,
        }
    }
}

const GUARDS: Query = Query {
    not: 0,
    any: is::GUARD,
};

/// Pages described by one read of /proc/PID/pagemap: 64 KiB for 32 MiB of addresses.
const ENTRIES: u64 = 8192;

/// From this many bytes on it is worth asking whether a mapping holds anything, before its entries are read.
const LARGE: u64 = 256 << 20;

/// `/proc/PID/pagemap` of a process.
pub struct Pagemap {
    pid: u32,
    file: File,
    method: Method,
    /// Mappings without any page, read when first needed.
    empty: OnceLock<Vec<Range<u64>>>,
}

impl Pagemap {
    /// Opens the page map of process `pid`.
    ///
    /// # Errors
    /// The process has ended, or may not be looked at (ptrace access to it is needed).
    pub fn open(pid: u32) -> Result<Self, Error> {
        Self::with_method(pid, Method::of_kernel())
    }

    pub(crate) fn with_method(pid: u32, method: Method) -> Result<Self, Error> {
        let path = format!("/proc/{pid}/pagemap");
        let file = File::open(&path).map_err(|source| failed(pid, path, source))?;
        Ok(Self {
            pid,
            file,
            method,
            empty: OnceLock::new(),
        })
    }

    /// Appends to `out` the runs of pages in `range` that hold content of their own, by address. `range` lies
    /// inside one mapping, of the given kind. Pages that raise SIGSEGV ([`Pagemap::guards`]) are not among them. Of a
    /// process that ends in the meantime there may be none.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn content(
        &self,
        range: Range<u64>,
        kind: Kind,
        out: &mut Vec<Range<u64>>,
    ) -> Result<(), Error> {
        self.find(range, kind.query(), u64::MAX, out).map(|_| ())
    }

    /// As [`Pagemap::content`], but stops when it has found `limit` pages. Returns the address where it stopped, and how
    /// many are left to the limit.
    pub(crate) fn some_content(
        &self,
        range: Range<u64>,
        kind: Kind,
        limit: u64,
        out: &mut Vec<Range<u64>>,
    ) -> Result<(u64, u64), Error> {
        self.find(range, kind.query(), limit, out)
    }

    /// Appends to `out` the runs of pages in `range` that `MADV_GUARD_INSTALL` made (Linux 6.13; the kernel tells
    /// since 6.15, before that they cannot be seen). `range` may span any number of mappings: asking once for all of
    /// an address space is cheaper than asking for each mapping.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn guards(&self, range: Range<u64>, out: &mut Vec<Range<u64>>) -> Result<(), Error> {
        self.find(range, GUARDS, u64::MAX, out).map(|_| ())
    }

    /// Whether a page is neither in memory nor in swap.
    pub(crate) fn is_absent(&self, page: u64) -> Result<bool, Error> {
        let mut raw = [0; 8];
        (self.file.read_exact_at(&mut raw, page * 8)).map_err(|source| self.failed(source))?;
        Ok(u64::from_ne_bytes(raw) & (entry::PRESENT | entry::SWAPPED) == 0)
    }

    /// Calls `found` with the number and the entry of every page of `range` that is in memory or in swap, by address.
    pub(crate) fn each(
        &self,
        range: &Range<u64>,
        found: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Error> {
        if range.end - range.start >= LARGE && self.is_empty(range)? {
            return Ok(());
        }
        let mut buffer = vec![0; (pages_in(range).min(ENTRIES) * 8) as usize];
        let (mut page, end) = (range.start / PAGE_SIZE, range.end / PAGE_SIZE);
        while page < end {
            let bytes = &mut buffer[..((end - page).min(ENTRIES) * 8) as usize];
            (self.file.read_exact_at(bytes, page * 8)).map_err(|source| self.failed(source))?;
            for raw in bytes.chunks_exact(8) {
                let raw = u64::from_ne_bytes(raw.try_into().unwrap_or_default());
                if raw & (entry::PRESENT | entry::SWAPPED) != 0 {
                    found(page, raw);
                }
                page += 1;
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`Error::Gone`] when the process no longer has the memory that this describes.
    pub(crate) fn check_alive(&self) -> Result<(), Error> {
        let path = format!("/proc/{}/statm", self.pid);
        let statm =
            std::fs::read_to_string(&path).map_err(|source| failed(self.pid, path, source))?;
        if statm.starts_with("0 ") {
            Err(Error::Gone { pid: self.pid })
        } else {
            Ok(())
        }
    }

    fn find(
        &self,
        range: Range<u64>,
        query: Query,
        limit: u64,
        out: &mut Vec<Range<u64>>,
    ) -> Result<(u64, u64), Error> {
        match self.method {
            Method::Scan { guards } => self.scan(range, query, guards, limit, out),
            Method::Entries { zero } => {
                // No kernel so old has guard pages.
                if query == GUARDS || range.end - range.start >= LARGE && self.is_empty(&range)? {
                    return Ok((range.end, limit));
                }
                self.entries(range, query, zero, limit, out)
            }
        }
    }

    fn scan(
        &self,
        range: Range<u64>,
        query: Query,
        guards: bool,
        limit: u64,
        out: &mut Vec<Range<u64>>,
    ) -> Result<(u64, u64), Error> {
        // A kernel that does not know guard pages as such shows them as swapped: their entries tell them apart.
        let asked = if guards {
            query
        } else {
            Query {
                not: query.not & !is::GUARD,
                any: if query == GUARDS {
                    is::SWAPPED
                } else {
                    query.any
                },
            }
        };
        let told = if guards { 0 } else { is::SWAPPED };
        let mut regions = [PageRegion::default(); 256];
        let mut at = range.start;
        let mut left = limit;
        while at < range.end && left > 0 {
            let max_pages = if left == u64::MAX { 0 } else { left };
            let (filled, stopped) = kernel::pagemap_scan(
                self.file.as_fd(),
                at,
                range.end,
                asked,
                max_pages,
                told,
                &mut regions,
            )
            .map_err(|errno| self.failed(errno.into()))?;
            for region in &regions[..filled] {
                let run = region.start..region.end;
                left = left.saturating_sub(pages_in(&run));
                if region.categories & is::SWAPPED == 0 {
                    push_run(out, run);
                } else {
                    self.entries(run, query, 0, u64::MAX, out)?;
                }
            }
            if stopped <= at {
                return Err(self.failed(io::Error::other("the scan of its pages does not advance")));
            }
            at = stopped;
        }
        Ok((at, left))
    }

    fn entries(
        &self,
        range: Range<u64>,
        query: Query,
        zero: u64,
        limit: u64,
        out: &mut Vec<Range<u64>>,
    ) -> Result<(u64, u64), Error> {
        let mut buffer = vec![0; (pages_in(&range).min(ENTRIES) * 8) as usize];
        let mut at = range.start;
        let mut left = limit;
        while at < range.end {
            let block = at..range.end.min(at + ENTRIES * PAGE_SIZE);
            let bytes = &mut buffer[..(pages_in(&block) * 8) as usize];
            self.file
                .read_exact_at(bytes, block.start / PAGE_SIZE * 8)
                .map_err(|source| self.failed(source))?;
            for raw in bytes.chunks_exact(8) {
                let page = at..at + PAGE_SIZE;
                at = page.end;
                let raw = u64::from_ne_bytes(raw.try_into().unwrap_or_default());
                if raw != 0 && query.matches(categories(raw, zero)) {
                    push_run(out, page);
                    left -= 1;
                    if left == 0 {
                        return Ok((at, left));
                    }
                }
            }
        }
        Ok((at, left))
    }

    /// Reading the entries of 3 TiB of nothing takes seconds; smaps knows at once.
    fn is_empty(&self, range: &Range<u64>) -> Result<bool, Error> {
        let empty = if let Some(empty) = self.empty.get() {
            empty
        } else {
            let path = format!("/proc/{}/smaps", self.pid);
            let text =
                std::fs::read_to_string(&path).map_err(|source| failed(self.pid, path, source))?;
            self.empty.get_or_init(|| empty_mappings(&text))
        };
        Ok(empty
            .iter()
            .any(|mapping| mapping.start <= range.start && range.end <= mapping.end))
    }

    fn failed(&self, source: io::Error) -> Error {
        failed(self.pid, format!("/proc/{}/pagemap", self.pid), source)
    }
}

pub(crate) fn failed(pid: u32, path: String, source: io::Error) -> Error {
    // The files outlive the process, and then read as empty.
    let gone = source.kind() == io::ErrorKind::UnexpectedEof
        || matches!(source.raw_os_error(), Some(libc::ESRCH | libc::ENOENT));
    if gone {
        Error::Gone { pid }
    } else {
        Error::Pagemap { path, source }
    }
}

/// An entry of /proc/PID/pagemap in the terms of `PAGEMAP_SCAN`.
fn categories(raw: u64, zero: u64) -> u64 {
    let frame = raw & entry::FRAME;
    let present = raw & entry::PRESENT != 0;
    [
        (present, is::PRESENT),
        (raw & entry::SWAPPED != 0, is::SWAPPED),
        (raw & entry::FILE != 0, is::FILE),
        (raw & entry::GUARD != 0, is::GUARD),
        (present && frame != 0 && frame == zero, is::ZERO),
    ]
    .into_iter()
    .filter_map(|(set, category)| set.then_some(category))
    .sum()
}

/// The mappings of which neither memory nor swap holds a page, from the text of smaps.
fn empty_mappings(smaps: &str) -> Vec<Range<u64>> {
    let mut mappings: Vec<(Range<u64>, bool)> = Vec::new();
    for line in smaps.lines() {
        let Some((first, rest)) = line.split_once(' ') else {
            continue;
        };
        match (first, mappings.last_mut()) {
            ("Rss:" | "Swap:" | "Private_Hugetlb:" | "Shared_Hugetlb:", Some((_, empty))) => {
                *empty &= rest.trim() == "0 kB";
            }
            _ => {
                let Some((start, end)) = first.split_once('-') else {
                    continue;
                };
                if let (Ok(start), Ok(end)) =
                    (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
                {
                    mappings.push((start..end, true));
                }
            }
        }
    }
    mappings
        .into_iter()
        .filter_map(|(range, empty)| empty.then_some(range))
        .collect()
}
