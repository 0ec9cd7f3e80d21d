//! One address space whose pages may be missing: its userfaultfd, what belongs where in it, and putting pages in.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nix::errno::Errno;

use super::journal::Journal;
use super::layout::Layout;
use super::{Label, Waiter};
use crate::PAGE_SIZE;
use crate::uffd::{Partial, Userfault};

/// Pages put in at a time; messages of the address space are not read meanwhile.
const STRETCH: usize = 16;

#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) number: u32,
    /// It was forked from another since the restore.
    pub(crate) is_child: bool,
    /// The number of its pages' space in the image.
    pub(crate) image: u64,
    pub(crate) uffd: Userfault,
    /// Pages go in write-protected.
    pub(crate) protect: bool,
    state: RwLock<State>,
    done: Mutex<Done>,
    gone: AtomicBool,
}

/// What is in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Done {
    /// Keys of blocks.
    pub(crate) blocks: HashSet<u64>,
    /// The pages in them.
    pub(crate) pages: u64,
}

/// Messages are read, and `layout` with them, under the write lock; pages are put in under the read lock. So a page never goes
/// where it belonged before a message that was read: messages not yet read keep the kernel from taking pages (EAGAIN).
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) layout: Layout,
    pub(crate) journal: Journal,
}

/// What goes to where pages are missing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// SIGBUS for who touches it.
    Poison,
}

/// Why pages cannot be put in now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hindrance {
    /// Messages of this address space have to be read first.
    Message,
    /// The kernel lacks memory for them.
    Memory,
    /// There is no such address space any more.
    Gone,
}

impl Space {
    pub(crate) fn new(
        label: Label,
        image: u64,
        uffd: Userfault,
        protect: bool,
        state: State,
        done: Done,
    ) -> Self {
        Self {
            number: label.number,
            is_child: label.parent.is_some(),
            image,
            uffd,
            protect,
            state: RwLock::new(state),
            done: Mutex::new(done),
            gone: AtomicBool::new(false),
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the kernel whether the address space is still there.
    pub(crate) fn is_alive(&self) -> bool {
        self.uffd.is_alive()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Whether that is news.
    pub(crate) fn set_gone(&self) -> bool {
        !self.gone.swap(true, Ordering::Relaxed)
    }

    /// Puts zeros at `address`, if no page of the image belongs there according to `is_zero`, and wakes who waits for it.
    pub(crate) fn put_zero(
        &self,
        address: u64,
        write: bool,
        is_zero: impl FnOnce(&Layout) -> bool,
    ) -> Result<bool, Hindrance> {
        let state = self.read();
        if !is_zero(&state.layout) {
            return Ok(false);
        }
        let range = address..address + PAGE_SIZE;
        let put = if write {
            // The shared page of zeros would be copied at once.
            self.uffd.copy(address, &[0; PAGE_SIZE as usize], false)
        } else {
            self.uffd.zero(&range)
        };
        self.settle(put, &range).map(|_| true)
    }

    /// Puts in the page that somebody waits for, if it is one of `pages`, whose bytes `content` has, and wakes who waits for it.
    pub(crate) fn put_page(
        &self,
        &Waiter { address, write, .. }: &Waiter,
        pages: &[u64],
        content: Content<'_>,
    ) -> Result<bool, Hindrance> {
        let state = self.read();
        let page = state
            .layout
            .origin(address)
            .map(|origin| origin / PAGE_SIZE);
        let Some(nth) = page.and_then(|page| pages.binary_search(&page).ok()) else {
            return Ok(false);
        };
        let range = address..address + PAGE_SIZE;
        // One that is about to be written would fault again for its protection.
        let put = self.request(&range, content.part(nth, 1), self.protect && !write);
        self.settle(put, &range).map(|_| true)
    }

    /// Puts all of `pages` where they belong, as far as they are missing.
    pub(crate) fn put_all(&self, pages: &[u64], content: Content<'_>) -> Result<(), Hindrance> {
        let mut nth = 0;
        while nth < pages.len() {
            let rest = &pages[nth..pages.len().min(nth + STRETCH)];
            let follows = rest.windows(2).take_while(|pair| pair[0] + 1 == pair[1]);
            let count = 1 + follows.count();
            let origin = pages[nth] * PAGE_SIZE..(pages[nth] + count as u64) * PAGE_SIZE;
            let state = self.read();
            for (range, from) in state.layout.places(&origin) {
                let first = nth + ((from - origin.start) / PAGE_SIZE) as usize;
                self.put_range(range, first, content)?;
            }
            nth += count;
        }
        Ok(())
    }

    /// Puts the pages of `content` from the `first` on into `range`, but for those that are there.
    fn put_range(
        &self,
        mut range: Range<u64>,
        mut first: usize,
        content: Content<'_>,
    ) -> Result<(), Hindrance> {
        // A request must lie within one mapping, and the job may have divided one since.
        let mut most = u64::MAX;
        while !range.is_empty() {
            let end = range.end.min(range.start.saturating_add(most));
            let part = range.start..end;
            let count = ((end - range.start) / PAGE_SIZE) as usize;
            let put = self.request(&part, content.part(first, count), self.protect);
            if let Err(Partial {
                done: 0,
                errno: Errno::ENOENT,
            }) = put
                && count > 1
            {
                most = PAGE_SIZE;
                continue;
            }
            let done = self.settle(put, &part)?;
            range.start += done;
            first += (done / PAGE_SIZE) as usize;
        }
        Ok(())
    }

    fn request(
        &self,
        range: &Range<u64>,
        content: Content<'_>,
        protect: bool,
    ) -> Result<(), Partial> {
        match content {
            Content::Bytes(bytes) => self.uffd.copy(range.start, bytes, protect),
            Content::Poison => self.uffd.poison(range),
        }
    }

    /// How far a request for `range` came, a page at least that is there or needs nothing.
    fn settle(&self, put: Result<(), Partial>, range: &Range<u64>) -> Result<u64, Hindrance> {
        let Err(Partial { done, errno }) = put else {
            return Ok(range.end - range.start);
        };
        if done > 0 {
            return Ok(done);
        }
        match errno {
            // Whoever put it there woke those who waited, but for one that was on its way into waiting.
            Errno::EEXIST => {
                let _ = self.uffd.wake(&(range.start..range.start + PAGE_SIZE));
                Ok(PAGE_SIZE)
            }
            // Nothing of ours is mapped there any more.
            Errno::ENOENT => Ok(PAGE_SIZE),
            Errno::EAGAIN | Errno::EINTR => Err(Hindrance::Message),
            Errno::ESRCH => Err(Hindrance::Gone),
            _ => Err(Hindrance::Memory),
        }
    }
}

impl<'a> Content<'a> {
    fn part(self, first: usize, count: usize) -> Content<'a> {
        let page = PAGE_SIZE as usize;
        match self {
            Self::Bytes(bytes) => Self::Bytes(&bytes[first * page..(first + count) * page]),
            Self::Poison => Self::Poison,
        }
    }
}
