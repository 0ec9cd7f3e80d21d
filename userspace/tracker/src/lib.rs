//! What eBPF programs say of a job: loading them, and reading what they write.
//!
//! Iterators write, for a process, one record for each of its mappings or descriptors, without the text of /proc and
//! without walking its page tables. Nothing stays attached: programs and links are descriptors of this process and end with it.
//!
//! Everything here has a slower way without BPF; callers take that when [`Tracker::load`] fails.

mod btf;
mod descriptors;
mod error;
mod flags;
mod identity;
mod iterator;
mod mappings;
mod object;
mod picture;
mod samples;
mod sys;
mod tasks;
mod threads;
mod undo;

use std::sync::{Mutex, OnceLock, PoisonError};

pub use descriptors::Descriptor;
pub use error::Error;
pub use identity::FileIdentity;
pub use mappings::{Mapping, Place};
pub use picture::{Change, Hooks, Member, PROCESSES, Picture};
pub use tasks::Task;
pub use threads::{Action, MapGeneration, Process, Thread, Wait};
pub use undo::{SEMAPHORES, Undo};

use flags::Flags;
use iterator::TaskIterator;

/// The programs, loaded into the kernel. Reading takes `&self`, from any thread.
#[derive(Debug)]
pub struct Tracker {
    descriptors: TaskIterator,
    mappings: TaskIterator,
    tasks: TaskIterator,
    threads: TaskIterator,
    flags: Mutex<Flags>,
    /// Our own session keyring.
    session: u64,
    /// Which word of [`Thread::security`] is Landlock's.
    domain: Option<usize>,
    /// Whether all waits are told.
    waits: bool,
    /// Whether tasks are numbered for us as in the first pid namespace.
    first_namespace: bool,
    picture: OnceLock<Picture>,
    /// Functions of the kernel's.
    restarts: OnceLock<Vec<(u64, &'static str)>>,
    /// Loaded for the first job that has semaphores.
    undo: OnceLock<Option<TaskIterator>>,
}

impl Tracker {
    /// Loads the programs. Takes some ten milliseconds.
    ///
    /// # Errors
    /// [`Error`]: the kernel or our rights do not allow it.
    pub fn load() -> Result<Self, Error> {
        let description = object::describe_kernel()?;
        let objects = [
            object::DESCRIPTORS,
            object::MAPPINGS,
            object::TASKS,
            object::THREADS,
        ];
        let kernel = object::Kernel::new(&description, &objects)?;
        let mut tracker = Self {
            descriptors: kernel
                .fit(object::DESCRIPTORS)?
                .iterator("descriptors", "task_file")?,
            mappings: kernel
                .fit(object::MAPPINGS)?
                .iterator("mappings", "task_vma")?,
            tasks: kernel.fit(object::TASKS)?.iterator("tasks", "task")?,
            threads: kernel.fit(object::THREADS)?.iterator("threads", "task")?,
            flags: Mutex::default(),
            session: 0,
            domain: None,
            waits: false,
            first_namespace: in_first_namespace(),
            picture: OnceLock::new(),
            restarts: OnceLock::new(),
            undo: OnceLock::new(),
        };
        tracker.learn_from_ourselves()?;
        let own = tracker.threads(std::process::id())?;
        let leader = own.iter().find_map(|thread| thread.process.as_ref());
        tracker.waits = leader.is_some_and(|own| own.tells_poll);
        tracker.session = own.first().map_or(0, |own| own.session);
        tracker.domain = tracker.find_domain()?;
        Ok(tracker)
    }

    /// The descriptors of a process, by number. It should not run meanwhile, or the picture is blurred.
    ///
    /// # Errors
    /// [`Error::System`]: the iterator cannot be made or read. A process that is gone has no descriptors.
    pub fn descriptors(&self, pid: u32) -> Result<Vec<Descriptor>, Error> {
        descriptors::parse(&self.descriptors.read(pid)?)
    }

    /// The mappings of a process, by address. It should not run meanwhile, or the picture is blurred.
    ///
    /// # Errors
    /// [`Error::System`]: the iterator cannot be made or read. A process that is gone has no mappings.
    pub fn mappings(&self, pid: u32) -> Result<Vec<Mapping>, Error> {
        mappings::parse(&self.mappings.read(pid)?)
    }

    /// The threads of a process, its leader first. They should not run meanwhile, or the picture is blurred.
    ///
    /// # Errors
    /// [`Error::System`]: the iterator cannot be made or read. A process that is gone has no threads.
    pub fn threads(&self, pid: u32) -> Result<Vec<Thread>, Error> {
        let mut threads = threads::parse(&self.threads.read(pid)?)?;
        for thread in &mut threads {
            thread.keys |= thread.session != 0 && thread.session != self.session;
            thread.confined = self.domain.is_some_and(|nth| thread.security[nth] != 0);
        }
        Ok(threads)
    }

    /// Where among the words that security modules keep with credentials Landlock has its domain: a thread of ours that gets one shows it.
    /// `None`: the kernel has no Landlock.
    fn find_domain(&self) -> Result<Option<usize>, Error> {
        let look = |tid: u32| {
            let threads = self.threads(std::process::id())?;
            let found = threads.into_iter().find(|thread| thread.tid == tid);
            Ok(found.map(|thread| thread.security))
        };
        let Some((before, after)) = sys::confined(look)? else {
            return Ok(None);
        };
        let differs = |nth: &usize| before[*nth] == 0 && after[*nth] != 0;
        Ok((0..threads::SECURITY).find(differs))
    }

    /// Every thread of every process of the machine; those of the kernel's own are left out. `None`: we are in a pid namespace of our own, in
    /// which they have other ids.
    ///
    /// # Errors
    /// [`Error::System`]: the iterator cannot be made or read.
    pub fn tasks(&self) -> Result<Option<Vec<Task>>, Error> {
        if !self.first_namespace {
            return Ok(None);
        }
        tasks::parse(&self.tasks.read_all()?).map(Some)
    }

    /// Begins to follow a job, with nobody in the picture yet; [`Picture::begin`] says how. Only the first time.
    ///
    /// # Errors
    /// [`Error`]: the kernel or our rights do not allow it.
    pub fn follow(&self, processes: u32, calls: bool) -> Result<&Picture, Error> {
        if let Some(picture) = self.picture.get() {
            return Ok(picture);
        }
        let picture = Picture::begin(processes, calls)?;
        Ok(self.picture.get_or_init(|| picture))
    }

    /// The picture of the job that is followed.
    pub fn picture(&self) -> Option<&Picture> {
        self.picture.get()
    }

    /// Whether [`Thread::wait`] tells of every wait when it ends.
    pub fn tells_waits(&self) -> bool {
        self.waits
    }

    /// What will be undone on System V semaphores when the threads of a process have ended. They should not run meanwhile.
    ///
    /// # Errors
    /// [`Error`]: the program cannot be loaded, made or read.
    pub fn undo(&self, pid: u32) -> Result<Vec<Undo>, Error> {
        let load = || {
            let description = object::describe_kernel()?;
            let kernel = object::Kernel::new(&description, &[object::UNDO])?;
            kernel.fit(object::UNDO)?.iterator("undo", "task")
        };
        let warn = |error: &Error| tracing::warn!("{error}");
        let loaded = self.undo.get_or_init(|| load().inspect_err(warn).ok());
        let iterator = loaded.as_ref().ok_or_else(|| Error::Lacks {
            what: "way to read what is undone on semaphores".to_owned(),
        })?;
        undo::parse(&iterator.read(pid)?)
    }

    /// What the kernel calls a function of its own; of those that continue waits.
    pub fn restart_name(&self, function: u64) -> Option<&'static str> {
        let found = |(address, _): &&(u64, &str)| *address == function;
        let all = self.restarts.get_or_init(restarts);
        all.iter().find(found).map(|(_, name)| *name)
    }

    /// What smaps would show as the `VmFlags` of a mapping: two letters each, with spaces between. `None`: the kernel has
    /// not yet been seen to show what these flags are; read smaps then, and tell with [`Self::learn`].
    pub fn flag_names(&self, flags: u64) -> Option<String> {
        self.flags
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .names(flags)
    }

    /// Flags of mappings and what smaps says of the same ones.
    pub fn learn<'a>(&self, samples: impl IntoIterator<Item = (u64, &'a str)>) {
        self.flags
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .learn(samples);
    }

    /// Numbers of flags differ between kernels; mappings of our own that have them tell what they are called.
    fn learn_from_ourselves(&self) -> Result<(), Error> {
        let _samples = samples::Samples::make();
        let pid = std::process::id();
        let before = self.mappings(pid)?;
        let path = "/proc/self/smaps";
        let smaps = std::fs::read(path).map_err(Error::system(format!("reading {path}")))?;
        let after = self.mappings(pid)?;
        let smaps = String::from_utf8_lossy(&smaps);
        let stable = |range: (u64, u64)| {
            let same = |m: &&Mapping| (m.start, m.end) == range;
            let flags = before.iter().find(same)?.flags;
            (after.iter().find(same)?.flags == flags).then_some(flags)
        };
        self.learn(
            samples::flags(&smaps).filter_map(|(range, names)| Some((stable(range)?, names))),
        );
        Ok(())
    }
}

/// Whether pids are to us what they are to the kernel (include/linux/proc_ns.h, `PROC_PID_INIT_INO`).
pub(crate) fn in_first_namespace() -> bool {
    let own = std::fs::read_link("/proc/self/ns/pid");
    own.is_ok_and(|own| own.as_os_str() == "pid:[4026531836]")
}

/// Where in the kernel the functions are that continue waits; empty where addresses are hidden (kptr_restrict).
fn restarts() -> Vec<(u64, &'static str)> {
    const NAMES: [&str; 3] = [
        "hrtimer_nanosleep_restart",
        "futex_wait_restart",
        "do_restart_poll",
    ];
    let text = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let symbol = |line: &str| {
        let mut words = line.split(' ');
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let name = words.nth(1)?;
        let name = NAMES.into_iter().find(|known| *known == name)?;
        (address != 0).then_some((address, name))
    };
    text.lines().filter_map(symbol).collect()
}
