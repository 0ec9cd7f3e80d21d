//! The page server: answers page faults of processes whose memory is still in an image, and brings in the rest meanwhile.
//!
//! Each address space has a userfaultfd. Threads that wait for a page are told of there, and so is what the job does to its
//! memory (fork, mremap, munmap, MADV_DONTNEED), which decides what belongs where. A few worker threads take turns in
//! listening: the one that hears of a fault reads the block of pages around it from the image and puts it in, while another listens, so
//! that storage which hangs holds up only those who need it.
//!
//! What a server knows can be found again by another when it is killed: the userfaultfds lie in a [`Vault`], what was heard from each in
//! a [journal](journal), and pages that are in are not put in twice.

mod ahead;
mod background;
mod frames;
mod journal;
mod layout;
mod space;
mod statistics;
mod vault;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::PAGE_SIZE;
use crate::uffd::{Message, Userfault};
use ahead::Ahead;
use frames::{Asked, Data, Frames};
use journal::Journal;
use layout::Layout;
use space::{Content, Done, Hindrance, Space, State};
use statistics::Statistics;

pub use statistics::Progress;
pub use vault::{Label, Vault};

/// Workers when nothing hangs.
const WORKERS: usize = 2;
/// Workers that may wait for storage; further requests wait their turn.
const MAX_WORKERS: usize = 128;
/// Number of the event that ends the workers.
const END: u64 = u64::MAX;

/// An image, as the server sees it. Pages are numbered as at the checkpoint: address divided by the page size.
pub trait PageSource: Send + Sync + 'static {
    /// Pages that are read together.
    type Block: Send;

    /// The block that has a page of a space; `None`: the page is zero.
    fn locate(&self, space: u64, page: u64) -> Option<Self::Block>;
    /// Pages that will be wanted first, as far as can be guessed: spaces and pages, in that order.
    fn first(&self) -> Vec<(u64, u64)>;
    /// All blocks of a space, in the order in which they are best read.
    fn blocks(&self, space: u64) -> Box<dyn Iterator<Item = Self::Block> + Send + '_>;
    /// How many pages these have.
    fn pages(&self, space: u64) -> u64;
    /// What tells a block from others.
    fn key(block: &Self::Block) -> u64;
    /// Its pages, ascending.
    fn numbers(block: &Self::Block) -> &[u64];
    /// Reads the bytes of its pages into `out`.
    ///
    /// # Errors
    /// See [`Unreadable`].
    fn read(&self, block: &Self::Block, out: &mut Vec<u8>) -> Result<(), Unreadable>;
    /// Takes note of trouble, for people.
    fn complain(&self, what: &str);
}

/// Why a block cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// For people.
    pub what: String,
    /// Trying again is hardly of use: what is there is not what was written.
    pub damaged: bool,
}

/// An address space at the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Its number in the vault.
    pub number: u32,
    /// Its number in the image.
    pub space: u64,
    /// The mappings whose pages are missing, by address, and whether children get zeros there (MADV_WIPEONFORK).
    pub mappings: Vec<(Range<u64>, bool)>,
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the journals are.
    pub journals: PathBuf,
    /// Pages go in write-protected, so that they do not count as written. The mappings must be registered for it.
    pub protect: bool,
    /// Bytes of blocks to keep in memory.
    pub cache: usize,
    /// How long to try to read a block before its pages are given up.
    pub patience: Duration,
}

/// A thread waits for the page at `address` of a space.
#[derive(Debug)]
struct Waiter {
    space: Arc<Space>,
    address: u64,
    since: Instant,
}

/// A page server at work.
#[derive(Debug)]
pub struct Server<S: PageSource> {
    source: S,
    settings: Settings,
    vault: Vault,
    spaces: Mutex<BTreeMap<u32, Arc<Space>>>,
    frames: Frames<Waiter>,
    epoll: Epoll,
    end: EventFd,
    ahead: Mutex<Ahead>,
    /// Faults that were heard of by somebody who had something else to do.
    deferred: Mutex<VecDeque<(Waiter, bool)>>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    /// Workers that listen.
    idle: AtomicUsize,
    statistics: Statistics,
    over: (Mutex<bool>, Condvar),
    ending: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: PageSource> Server<S> {
    /// Serves what is in the vault, from its beginning or from where another server was ended.
    ///
    /// # Errors
    /// The kernel's: no more descriptors, no room for journals, a journal that is damaged.
    pub fn start(
        source: S,
        memories: &[Memory],
        vault: Vault,
        settings: Settings,
    ) -> io::Result<Arc<Self>> {
        let server = Arc::new(Self {
            source,
            frames: Frames::new(settings.cache),
            settings,
            vault,
            spaces: Mutex::default(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            end: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            ahead: Mutex::default(),
            deferred: Mutex::default(),
            workers: Mutex::default(),
            idle: AtomicUsize::new(0),
            statistics: Statistics::default(),
            over: (Mutex::new(false), Condvar::new()),
            ending: AtomicBool::new(false),
        });
        let event = EpollEvent::new(EpollFlags::EPOLLIN, END);
        server.epoll.add(&server.end, event)?;
        server.find_spaces(memories)?;
        for _ in 0..WORKERS {
            server.add_worker();
        }
        server.start_background()?;
        Ok(server)
    }

    /// What is in the vault, each with what its journal makes of it.
    fn find_spaces(&self, memories: &[Memory]) -> io::Result<()> {
        // Of each: its space in the image, its layout in the beginning, what was heard since.
        let mut known: BTreeMap<u32, (u64, Layout, Vec<Message>)> = BTreeMap::new();
        for (label, fd) in self.vault.contents()? {
            let (image, mut layout) = match label.parent {
                None => {
                    let memory = memories.iter().find(|memory| memory.number == label.number);
                    let memory = memory.ok_or(io::ErrorKind::InvalidData)?;
                    let mut layout = Layout::default();
                    for (range, wipe) in &memory.mappings {
                        layout.add(range, *wipe);
                    }
                    (memory.space, layout)
                }
                Some((parent, position)) => {
                    let parent = known.get(&parent).ok_or(io::ErrorKind::InvalidData)?;
                    let (image, mut layout, messages) = parent.clone();
                    let heard = messages.iter().take(position as usize);
                    heard.for_each(|message| layout.apply(message));
                    (image, layout.child())
                }
            };
            let (journal, messages) = Journal::open(&self.journal(label.number))?;
            known.insert(label.number, (image, layout.clone(), messages.clone()));
            messages.iter().for_each(|message| layout.apply(message));
            let state = State { layout, journal };
            self.add_space(label.number, image, fd, state, Done::default())?;
        }
        Ok(())
    }

    fn journal(&self, number: u32) -> PathBuf {
        self.settings.journals.join(format!("{number}.journal"))
    }

    fn add_space(
        &self,
        number: u32,
        image: u64,
        uffd: OwnedFd,
        state: State,
        done: Done,
    ) -> io::Result<()> {
        let pages = self.source.pages(image).saturating_sub(done.pages);
        self.statistics.expect(pages);
        let uffd = Userfault::new(uffd);
        let space = Space::new(number, image, uffd, self.settings.protect, state, done);
        let space = Arc::new(space);
        lock(&self.spaces).insert(number, Arc::clone(&space));
        let event = EpollEvent::new(LISTEN, number.into());
        self.epoll.add(&space.uffd, event)?;
        Ok(())
    }

    fn space(&self, number: u32) -> Option<Arc<Space>> {
        lock(&self.spaces).get(&number).cloned()
    }

    fn add_worker(self: &Arc<Self>) {
        let mut workers = lock(&self.workers);
        if workers.len() >= MAX_WORKERS {
            return;
        }
        self.idle.fetch_add(1, Ordering::SeqCst);
        let server = Arc::clone(self);
        let builder = std::thread::Builder::new().name("pages".into());
        match builder.stack_size(256 << 10).spawn(move || server.work()) {
            Ok(worker) => workers.push(worker),
            Err(error) => {
                self.idle.fetch_sub(1, Ordering::SeqCst);
                self.source
                    .complain(&format!("cannot start a thread: {error}"));
            }
        }
    }

    /// One worker.
    fn work(self: Arc<Self>) {
        let mut events = [EpollEvent::empty()];
        loop {
            let found = self.epoll.wait(&mut events, EpollTimeout::NONE);
            if self.ending.load(Ordering::SeqCst) {
                return;
            }
            if found != Ok(1) || events[0].data() == END {
                continue;
            }
            let Some(space) = self.space(events[0].data() as u32) else {
                continue;
            };
            self.idle.fetch_sub(1, Ordering::SeqCst);
            let fault = self.hear(&space);
            // Somebody else may hear the next message while this one is answered.
            let again = EpollEvent::new(LISTEN, space.number.into());
            let _ = self.epoll.modify(&space.uffd, &mut again.clone());
            if let Some((waiter, write)) = fault {
                self.serve(waiter, write);
            }
            self.serve_deferred();
            self.idle.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn serve_deferred(self: &Arc<Self>) {
        loop {
            let next = lock(&self.deferred).pop_front();
            let Some((waiter, write)) = next else { return };
            self.serve(waiter, write);
        }
    }

    /// Reads messages up to the next fault.
    fn hear(&self, space: &Arc<Space>) -> Option<(Waiter, bool)> {
        let mut state = space.write();
        loop {
            let message = match state.journal.read(&space.uffd) {
                Ok(message) => message?,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    let number = space.number;
                    let what = format!("cannot listen to address space {number}: {errno}");
                    self.source.complain(&what);
                    return None;
                }
            };
            match message {
                Message::Fault { address, write, .. } => {
                    let waiter = Waiter {
                        space: Arc::clone(space),
                        address,
                        since: Instant::now(),
                    };
                    return Some((waiter, write));
                }
                Message::Fork(fd) => {
                    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
                    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                    if let Err(error) = self.adopt(space, &state, fd) {
                        let what =
                            format!("a forked process may find zeros in its memory: {error}");
                        self.source.complain(&what);
                    }
                }
                other => state.layout.apply(&other),
            }
        }
    }

    /// Takes a child under our care. Its parent's fork returns meanwhile, but no later message of the parent is read.
    fn adopt(&self, parent: &Arc<Space>, state: &State, fd: OwnedFd) -> io::Result<()> {
        let last = lock(&self.spaces).keys().next_back().copied();
        let number = last.map_or(0, |last| last + 1);
        let label = Label {
            number,
            parent: Some((parent.number, state.journal.position() as u64)),
        };
        if let Err(error) = self.vault.keep(label, fd.as_fd()) {
            let what = format!("a forked process is served, but not if ckptd is killed: {error}");
            self.source.complain(&what);
        }
        let (journal, _) = Journal::open(&self.journal(number))?;
        let layout = state.layout.child();
        let state = State { layout, journal };
        let done = parent.done().clone();
        self.add_space(number, parent.image, fd, state, done)
    }

    /// Answers a fault, or leaves it to whoever reads the block already.
    fn serve(self: &Arc<Self>, waiter: Waiter, write: bool) {
        let space = Arc::clone(&waiter.space);
        loop {
            let address = waiter.address;
            let origin = space.read().layout.origin(address);
            let page = origin.map(|at| at / PAGE_SIZE);
            let block = page.and_then(|page| self.source.locate(space.image, page));
            let (Some(page), Some(block)) = (page, block) else {
                match space.put_zero(address, write, |layout| layout.origin(address) == origin) {
                    Ok(true) => return self.statistics.served(waiter.since),
                    Ok(false) => continue,
                    Err(hindrance) => {
                        if !self.overcome(&space, hindrance) {
                            return;
                        }
                        continue;
                    }
                }
            };
            if let (Some(first), Some(last)) =
                (S::numbers(&block).first(), S::numbers(&block).last())
            {
                lock(&self.ahead).fault(space.image, page, &(*first..last + 1));
            }
            let mut waiter = Some(waiter);
            match self.frames.ask(S::key(&block), || waiter.take()) {
                Asked::Joined => {}
                Asked::Here(data) => self.give(&block, Some(&data), waiter),
                Asked::Read(buffer) => {
                    if self.idle.load(Ordering::SeqCst) == 0 {
                        self.add_worker();
                    }
                    self.fetch(&block, buffer, waiter);
                }
            }
            return;
        }
    }

    /// Reads a block and gives it to all who wait for it.
    fn fetch(&self, block: &S::Block, buffer: Vec<u8>, waiter: Option<Waiter>) {
        let data: Option<Data> = self.read(block, buffer).map(Arc::new);
        if let Some(waiter) = waiter {
            self.give(block, data.as_ref(), Some(waiter));
        }
        for waiter in self.frames.finish(S::key(block), data.as_ref()) {
            self.give(block, data.as_ref(), Some(waiter));
        }
    }

    /// The bytes of a block; `None` when they are lost.
    fn read(&self, block: &S::Block, mut buffer: Vec<u8>) -> Option<Vec<u8>> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let error = match self.source.read(block, &mut buffer) {
                Ok(()) => return Some(buffer),
                Err(error) => error,
            };
            let patience = if error.damaged {
                self.settings.patience / 8
            } else {
                self.settings.patience
            };
            let pages = S::numbers(block).len();
            if begun.elapsed() >= patience {
                self.source.complain(&format!(
                    "{}; given up: {pages} pages are lost, and who touches them gets SIGBUS",
                    error.what
                ));
                return None;
            }
            self.source.complain(&format!(
                "{}; {pages} pages wait, next try in {} ms",
                error.what,
                pause.as_millis()
            ));
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Puts a block's pages where they belong in the waiter's space, the one that is waited for first.
    fn give(&self, block: &S::Block, data: Option<&Data>, waiter: Option<Waiter>) {
        let Some(waiter) = waiter else { return };
        let space = &waiter.space;
        let content = data.map_or(Content::Poison, |data| Content::Bytes(data));
        let pages = S::numbers(block);
        loop {
            match space.put_page(waiter.address, pages, content) {
                Ok(true) => break self.statistics.served(waiter.since),
                // What belongs there is something else by now.
                Ok(false) => {
                    let defer = Waiter {
                        space: Arc::clone(space),
                        ..waiter
                    };
                    break lock(&self.deferred).push_back((defer, false));
                }
                Err(hindrance) => {
                    if !self.overcome(space, hindrance) {
                        return;
                    }
                }
            }
        }
        self.put_all(space, block, content);
    }

    /// Puts a block where it belongs in a space, unless it is in.
    fn put_all(&self, space: &Arc<Space>, block: &S::Block, content: Content<'_>) {
        if space.done().blocks.contains(&S::key(block)) {
            return;
        }
        while let Err(hindrance) = space.put_all(S::numbers(block), content) {
            if !self.overcome(space, hindrance) {
                return;
            }
        }
        let mut done = space.done();
        if done.blocks.insert(S::key(block)) {
            let pages = S::numbers(block).len() as u64;
            done.pages += pages;
            self.statistics.done(pages);
        }
    }

    /// Does what is needed before pages can be put in; false when nothing helps.
    fn overcome(&self, space: &Arc<Space>, hindrance: Hindrance) -> bool {
        match hindrance {
            Hindrance::Gone => {
                if space.set_gone() {
                    let pages = self.source.pages(space.image);
                    self.statistics
                        .forget(pages.saturating_sub(space.done().pages));
                }
                return false;
            }
            Hindrance::Memory => std::thread::sleep(Duration::from_millis(20)),
            Hindrance::Message => match self.hear(space) {
                Some(fault) => lock(&self.deferred).push_back(fault),
                // It was read; the thread that it told of has yet to wake.
                None => std::thread::sleep(Duration::from_micros(20)),
            },
        }
        true
    }

    /// Waits until every page is in, at most so long.
    pub fn wait(&self, at_most: Duration) -> bool {
        let over = lock(&self.over.0);
        let waited = self.over.1.wait_timeout_while(over, at_most, |over| !*over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// What was waited for so far: space and first page of each block, in that order.
    #[must_use]
    pub fn touched(&self) -> Vec<(u64, u64)> {
        lock(&self.ahead).touched().to_vec()
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.statistics.progress()
    }

    /// Ends when every page is in: lets go of every userfaultfd, also in the vault, with which all mappings are as if there
    /// had never been one.
    pub fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        let _ = self.end.write(1);
        for worker in lock(&self.workers).drain(..) {
            let _ = worker.join();
        }
        lock(&self.deferred).clear();
        lock(&self.spaces).clear();
        self.vault.empty();
    }
}

/// One worker hears of it, and no other until it asks for more.
const LISTEN: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLONESHOT);
