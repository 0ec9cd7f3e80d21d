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
mod answer;
mod background;
mod frames;
mod journal;
mod layout;
mod source;
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

use crate::uffd::{Message, Userfault};
use ahead::Ahead;
use frames::Frames;
use journal::Journal;
use layout::Layout;
use space::{Done, Space, State};
use statistics::Statistics;

pub use source::{PageSource, Unreadable};
pub use statistics::Progress;
pub use vault::{Label, Vault};

/// Workers when nothing hangs.
const WORKERS: usize = 2;
/// Workers that may wait for storage; further requests wait their turn.
const MAX_WORKERS: usize = 128;
/// Number of the event that ends the workers.
const END: u64 = u64::MAX;

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
    /// It wants to write.
    write: bool,
    since: Instant,
}

/// What is missing of an address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its number in the vault.
    pub number: u32,
    /// Whatever of these ranges is missing belongs where it was at the checkpoint; by address.
    pub in_place: Vec<Range<u64>>,
    /// Something that is missing belongs elsewhere by now, or in the address space of a child.
    pub elsewhere: bool,
    /// Where memory was moved to since the checkpoint, by address. What is there looks as if nobody had written it.
    pub arrived: Vec<Range<u64>>,
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
    deferred: Mutex<VecDeque<Waiter>>,
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
            self.add_space(label, image, fd, state, Done::default())?;
        }
        Ok(())
    }

    fn journal(&self, number: u32) -> PathBuf {
        self.settings.journals.join(format!("{number}.journal"))
    }

    fn add_space(
        &self,
        label: Label,
        image: u64,
        uffd: OwnedFd,
        state: State,
        done: Done,
    ) -> io::Result<()> {
        let number = label.number;
        let pages = self.source.pages(image).saturating_sub(done.pages);
        self.statistics.expect(pages);
        let uffd = Userfault::new(uffd);
        let space = Space::new(label, image, uffd, self.settings.protect, state, done);
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
            if let Some(waiter) = fault {
                self.serve(waiter);
            }
            self.serve_deferred();
            self.idle.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Reads messages up to the next fault.
    fn hear(&self, space: &Arc<Space>) -> Option<Waiter> {
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
                    return Some(Waiter {
                        space: Arc::clone(space),
                        address,
                        write,
                        since: Instant::now(),
                    });
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
        self.add_space(label, parent.image, fd, state, done)
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

    /// What is missing of each address space that is there. It stays true as long as all threads are stopped, and all that they
    /// did to their memory is in it.
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        let spaces: Vec<_> = lock(&self.spaces).values().cloned().collect();
        let mut found = Vec::new();
        for space in spaces.iter().filter(|space| space.is_alive()) {
            // Whoever reads a message holds the lock until it is applied.
            let state = space.write();
            found.push(Missing {
                number: space.number,
                in_place: state.layout.unmoved().collect(),
                elsewhere: space.is_child || state.layout.has_moved(),
                arrived: state.layout.arrived(),
            });
        }
        found
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
