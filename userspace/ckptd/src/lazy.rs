//! The page server of a lazily restored job: a process of its own, what it is told, and what it tells.
//!
//! All is in the folder `lazy` of the job's entry in the run directory: `record.json` says what there is to serve, the journals what has
//! become of it, `progress.json` how far it is. The folder goes when every page is in.

mod ask;

pub(crate) use ask::Desk;

use crate::failure::Failure;
use crate::output::{count, duration, size, tell};
use crate::process::ProcessId;
use crate::registry::write_atomically;
use crate::supervisor::spawn_self;
use engine::{Incoming, Incomplete, LazyJob, Missing as EngineMissing};
use memory::serve::{Memory, Vault};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::stat::fstat;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Before a page server that has ended is replaced.
const RESTART: Duration = Duration::from_millis(20);

/// What there is to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The store, absolute.
    pub dir: PathBuf,
    /// The job.
    pub job: String,
    /// The checkpoint that has the pages.
    pub sequence: u64,
    /// In the job's processes, where the vault is.
    pub descriptor: u32,
    /// Pages go in write-protected.
    pub protect: bool,
    /// A store that may have a copy of the checkpoint, absolute.
    #[serde(default)]
    pub stage: Option<PathBuf>,
    /// Bytes of the image to keep in memory.
    pub cache: usize,
    /// For how long to try to read what cannot be read, in seconds.
    pub patience: u64,
    /// Who has to say, when every page is in, that it needs no server any more: the supervisor, if it watches the job's writes.
    #[serde(default)]
    pub supervisor: Option<ProcessId>,
    /// The processes.
    pub processes: Vec<Missing>,
}

/// What is missing in a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing {
    process: ProcessId,
    number: u32,
    space: u64,
    /// Start, end, and whether children get zeros there.
    mappings: Vec<(u64, u64, bool)>,
}

impl Record {
    /// Of what has just been restored.
    pub(crate) fn new(job: &LazyJob, from: Source) -> Self {
        let missing = |(pid, memory): &(u32, Memory)| Missing {
            process: ProcessId::of(*pid).unwrap_or(ProcessId {
                pid: *pid,
                start: 0,
            }),
            number: memory.number,
            space: memory.space,
            mappings: memory
                .mappings
                .iter()
                .map(|(range, wipe)| (range.start, range.end, *wipe))
                .collect(),
        };
        let Source {
            dir,
            job: name,
            sequence,
            stage,
            cache,
            patience,
        } = from;
        Self {
            dir,
            job: name,
            sequence,
            descriptor: job.descriptor,
            protect: job.protect,
            stage,
            cache,
            patience: patience.as_secs(),
            supervisor: job.protect.then(ProcessId::own),
            processes: job.processes.iter().map(missing).collect(),
        }
    }

    /// As the server wants it.
    pub(crate) fn memories(&self) -> Vec<Memory> {
        let memory = |missing: &Missing| Memory {
            number: missing.number,
            space: missing.space,
            mappings: missing
                .mappings
                .iter()
                .map(|(start, end, wipe)| (*start..*end, *wipe))
                .collect(),
        };
        self.processes.iter().map(memory).collect()
    }

    /// The processes that are still there, and the spaces that their memory came from.
    pub(crate) fn alive(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let alive = self.processes.iter().filter(|m| m.process.is_alive());
        alive.map(|missing| (missing.process.pid, missing.space))
    }

    /// The vault, from whichever of the job's processes still has it.
    pub(crate) fn find_vault(&self) -> Option<Vault> {
        let processes = self.processes.iter().map(|missing| missing.process);
        let mut alive = processes.filter(|process| process.is_alive());
        alive.find_map(|process| engine::find_vault(process.pid, self.descriptor).ok())
    }

    /// Writes it into an entry of the run directory.
    fn write(&self, entry: &Path) -> io::Result<()> {
        let folder = folder(entry);
        fs::create_dir(&folder)?;
        write_atomically(&folder.join("record.json"), &serde_json::to_vec(self)?)
    }

    /// What an entry of the run directory says.
    pub(crate) fn read(entry: &Path) -> io::Result<Self> {
        let text = fs::read(folder(entry).join("record.json"))?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Where the pages come from, and how.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub dir: PathBuf,
    pub job: String,
    pub sequence: u64,
    pub stage: Option<PathBuf>,
    pub cache: usize,
    pub patience: Duration,
}

/// The folder of an entry that is about its pages.
pub(crate) fn folder(entry: &Path) -> PathBuf {
    entry.join("lazy")
}

/// How far a page server is, as `ckptd list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// The server.
    pub server: ProcessId,
    /// Bytes of memory that are in.
    pub done: u64,
    /// Bytes of memory in all.
    pub total: u64,
    /// Pages that the job has waited for.
    pub faults: u64,
    /// Half of them took no longer, in microseconds.
    pub median_us: u64,
}

impl Progress {
    /// What the server of an entry last said; none when no page is missing.
    pub(crate) fn read(entry: &Path) -> Option<Self> {
        let text = fs::read(folder(entry).join("progress.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// One line for people.
    pub(crate) fn summary(&self) -> String {
        let far = format!(
            "{} of {} of its memory are in",
            size(self.done),
            size(self.total)
        );
        let waits = count(self.faults, "page was", "pages were");
        let median = duration(Duration::from_micros(self.median_us));
        if self.server.is_alive() {
            format!("{far}; {waits} waited for, half of them {median} at most")
        } else {
            format!("{far}, and nobody brings in the rest: see `ckptd attach`")
        }
    }

    /// Says it.
    pub(crate) fn write(&self, entry: &Path) {
        let text = serde_json::to_vec(self).unwrap_or_default();
        if let Err(error) = write_atomically(&folder(entry).join("progress.json"), &text) {
            tracing::debug!("cannot say how far it is: {error}");
        }
    }
}

/// The supervisor's part: it holds the vault too, and starts another server when one dies.
#[derive(Debug)]
pub(crate) struct Serving(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    vault: Vault,
    /// Where the job's writes are watched meanwhile: numbers of address spaces in the vault, and their processes.
    watched: Option<Vec<(u32, u32)>>,
    entry: PathBuf,
    server: Mutex<Server>,
    changed: Condvar,
}

/// The server's process.
#[derive(Debug)]
enum Server {
    Runs(OwnedFd),
    /// Every page is in, or the job has ended.
    Over,
}

impl Serving {
    /// Notes what there is to serve, and starts a server.
    pub(crate) fn start(entry: &Path, job: LazyJob, from: Source) -> Result<Self, Failure> {
        let record = Record::new(&job, from);
        record.write(entry).map_err(|error| {
            Failure::because(format!("cannot write to {}", entry.display()), error)
        })?;
        let server = start_server(&job.vault, entry)?;
        let numbers = job.processes.iter();
        let numbers = numbers.map(|(pid, memory)| (memory.number, *pid)).collect();
        Self::with(job.vault, server, entry, job.protect.then_some(numbers))
    }

    /// Goes on where another supervisor was ended; none when every page is in.
    pub(crate) fn resume(entry: &Path) -> Result<Option<Self>, Failure> {
        let Ok(record) = Record::read(entry) else {
            return Ok(None);
        };
        let vault = record.find_vault().ok_or_else(|| {
            Failure::new("none of the job's processes has kept what is needed to serve its memory")
                .help("end the job and restore it again")
        })?;
        let alive = Progress::read(entry).filter(|told| told.server.is_alive());
        let alive = alive.and_then(|told| open(told.server.pid).ok());
        let server = alive.map_or_else(|| start_server(&vault, entry), Ok)?;
        // Its writes since then are not known to us.
        Self::with(vault, server, entry, None).map(Some)
    }

    fn with(
        vault: Vault,
        server: OwnedFd,
        entry: &Path,
        watched: Option<Vec<(u32, u32)>>,
    ) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            vault,
            watched,
            entry: entry.to_owned(),
            server: Mutex::new(Server::Runs(server)),
            changed: Condvar::new(),
        });
        let watch = Arc::clone(&shared);
        // Signals are for the supervisor's own thread.
        let failed = |error| Failure::because("cannot watch the page server", error);
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let started = std::thread::Builder::new().spawn(move || watch.watch());
        if let Ok(mask) = before {
            let _ = mask.thread_set_mask();
        }
        started.map_err(failed)?;
        Ok(Self(shared))
    }

    /// For somebody else who has to know when every page is in.
    pub(crate) fn pages(&self) -> Pages {
        Pages(Arc::clone(&self.0))
    }
}

/// The pages that a page server brings in.
#[derive(Debug, Clone)]
pub(crate) struct Pages(Arc<Shared>);

/// How long a page server may take to answer, or to be replaced.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two tries to reach it.
const PAUSE: Duration = Duration::from_millis(20);

impl Pages {
    /// Waits until all are in and the server has ended, or the job has.
    pub(crate) fn wait_for_end(&self) {
        let server = self.0.lock();
        let runs = |server: &mut Server| matches!(server, Server::Runs(_));
        drop(self.0.changed.wait_while(server, runs));
    }

    /// Whether checkpoints can be taken meanwhile: see [`Incoming`].
    pub(crate) fn are_watched(&self) -> bool {
        self.0.watched.is_some()
    }

    fn is_over(&self) -> bool {
        matches!(*self.0.lock(), Server::Over)
    }

    fn ask(&self) -> io::Result<ask::Missing> {
        let begun = Instant::now();
        loop {
            match ask::missing(&self.0.entry) {
                // It may have been killed, and another is on its way.
                Err(_) if begun.elapsed() < ANSWER && !self.is_over() => std::thread::sleep(PAUSE),
                answer => return answer,
            }
        }
    }
}

impl Incoming for Pages {
    fn missing(&self) -> io::Result<EngineMissing> {
        let told = self.ask()?;
        let mut missing = EngineMissing {
            nothing: told.whole,
            ..EngineMissing::default()
        };
        let watched = self.0.watched.as_deref().unwrap_or_default();
        for space in told.spaces {
            let known = watched.iter().find(|(n, _)| *n == space.number);
            missing.elsewhere |= space.elsewhere || known.is_none();
            missing.processes.extend(known.map(|(_, pid)| Incomplete {
                pid: *pid,
                in_place: space.in_place,
                arrived: space.arrived,
            }));
        }
        Ok(missing)
    }

    fn wait(&self) {
        while !self.is_over() && self.ask().is_ok_and(|told| !told.whole) {
            std::thread::sleep(PAUSE);
        }
    }

    fn sockets(&self) -> [u64; 2] {
        let vault = &self.0.vault;
        [vault.receiver(), vault.sender()].map(|end| fstat(end).map_or(0, |stat| stat.st_ino))
    }

    fn release(&self) {
        while !self.is_over() && ask::release(&self.0.entry).is_err() {
            std::thread::sleep(PAUSE);
        }
        self.wait_for_end();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a server whenever one has ended before its time.
    fn watch(&self) {
        loop {
            let server = match &*self.lock() {
                Server::Runs(server) => server.try_clone(),
                Server::Over => return,
            };
            let Ok(server) = server else { return };
            while poll(
                &mut [PollFd::new(server.as_fd(), PollFlags::POLLIN)],
                PollTimeout::NONE,
            ) == Err(nix::errno::Errno::EINTR)
            {}
            // The supervisor may have been quicker.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let _ = waitid(WaitId::PidFd(server.as_fd()), options);
            let mut state = self.lock();
            if matches!(*state, Server::Over) || !folder(&self.entry).exists() {
                *state = Server::Over;
                self.changed.notify_all();
                return;
            }
            tell("ckptd: the page server was ended before its time; the job waits for another\n");
            // One that ends at once will not do better a moment later.
            std::thread::sleep(RESTART);
            match start_server(&self.vault, &self.entry) {
                Ok(server) => *state = Server::Runs(server),
                Err(failure) => {
                    failure.help("`ckptd attach` goes on").print(false);
                    return;
                }
            }
        }
    }
}

impl Drop for Serving {
    /// The job has ended, or never came about: a server that waits for storage would not notice.
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let Server::Runs(server) = &*state {
            let _ = pidfd_send_signal(server, Signal::KILL);
        }
        *state = Server::Over;
        self.0.changed.notify_all();
    }
}

fn start_server(vault: &Vault, entry: &Path) -> Result<OwnedFd, Failure> {
    let failed = |error| Failure::because("cannot start the page server", error);
    // Above the numbers that the server finds them under.
    let receiver = fcntl_dupfd_cloexec(vault.receiver(), 10).map_err(failed)?;
    let sender = fcntl_dupfd_cloexec(vault.sender(), 10).map_err(failed)?;
    let arguments = ["ckptd".into(), "serve".into(), entry.as_os_str().to_owned()];
    let given = [(receiver.as_raw_fd(), 3), (sender.as_raw_fd(), 4)];
    let start = || spawn_self(&arguments, &given, true, &SigSet::empty());
    let pid = engine::start_apart(start)?;
    open(pid).map_err(failed)
}

fn open(pid: u32) -> Result<OwnedFd, rustix::io::Errno> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pidfd_open(pid.ok_or(rustix::io::Errno::SRCH)?, PidfdFlags::empty())
}
