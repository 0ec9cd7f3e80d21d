//! What is read of each process of a frozen job without being its tracer, by several threads at once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use images::proto::Rlimit;
use remote::live::Room;
use tracker::{Descriptor, Tracker};

use crate::ahead::Ahead;
use crate::areas::{self, Area, Paths};
use crate::files::{self, directory};
use crate::freeze::failed;
use crate::procfs::{self, Stat, Status};
use crate::{CheckpointError, limits, pages, told};

/// What /proc and the iterators say of a process.
pub(super) struct Gathered {
    pub(super) status: Status,
    pub(super) stat: Stat,
    /// Of the thread that speaks for a process whose leader has ended.
    pub(super) speaker: Option<(Status, Stat)>,
    pub(super) namespaces: Namespaces,
    /// Of one that has not ended.
    pub(super) living: Option<Living>,
}

/// What only those have that have not ended.
pub(super) struct Living {
    /// Nothing is left in it of a ckptd that was killed.
    pub(super) calm: bool,
    pub(super) threads: Vec<tracker::Thread>,
    /// Without what a ckptd that was killed has left.
    pub(super) areas: Vec<Area>,
    pub(super) descriptors: Vec<(u32, Option<Descriptor>)>,
    pub(super) cwd: String,
    pub(super) root: String,
    pub(super) cwd_deleted: bool,
    pub(super) limits: Vec<Rlimit>,
    pub(super) oom_score_adj: i32,
    pub(super) coredump_filter: Option<u32>,
}

/// Those of [`NAMESPACES`].
pub(crate) type Namespaces = [Option<String>; 10];

/// As /proc/PID/ns calls them.
const NAMESPACES: [&str; 10] = [
    "mnt",
    "user",
    "net",
    "ipc",
    "uts",
    "pid",
    "time",
    "cgroup",
    "pid_for_children",
    "time_for_children",
];

/// The namespaces of a process.
pub(crate) fn namespaces_of(pid: u32) -> Namespaces {
    NAMESPACES.map(|name| procfs::link(&format!("/proc/{pid}/ns/{name}")).ok())
}

/// How long a process may take to end.
const PATIENCE_MS: u32 = 200;

/// Fewer processes are not worth a thread.
const FEW: usize = 4;

/// All of these processes, each with the thread that speaks for it, by pid. Who is gone is missing.
pub(super) fn gather(
    pids: &[(u32, u32)],
    tracker: Option<&Tracker>,
    ahead: &Ahead,
) -> Result<HashMap<u32, Gathered>, CheckpointError> {
    let rest = Mutex::new(pids.iter());
    let next = || {
        let mut rest = rest
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        rest.next().copied()
    };
    let work = || -> Result<Vec<(u32, Gathered)>, CheckpointError> {
        let (mut paths, mut all) = (Paths::new(), Vec::new());
        while let Some((pid, speaker)) = next() {
            if let Some(status) = settled(pid) {
                let found = one((pid, speaker), status, tracker, (ahead, &mut paths))?;
                all.push((pid, found));
            }
        }
        Ok(all)
    };
    let parts = memory::together(pages::threads().min(pids.len() / FEW), work);
    let parts: Result<Vec<_>, _> = parts.into_iter().collect();
    Ok(parts?.into_iter().flatten().collect())
}

/// Where a process stands, once it stands. A SIGKILL that came when it had stopped already ends it all the same, when it gets a CPU
/// (kernel/signal.c, complete_signal).
fn settled(pid: u32) -> Option<Status> {
    const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);
    let is_dying = |status: &Status| match status.state() {
        'R' | 'X' => true,
        state => state != 'Z' && (status.hex("SigPnd") | status.hex("ShdPnd")) & SIGKILL != 0,
    };
    for _ in 0..PATIENCE_MS {
        let status = Status::read(pid).ok()?;
        if !is_dying(&status) {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Status::read(pid).ok()
}

fn one(
    (pid, speaker): (u32, u32),
    status: Status,
    tracker: Option<&Tracker>,
    known: (&Ahead, &mut Paths),
) -> Result<Gathered, CheckpointError> {
    let stat = |pid: u32| Stat::read(pid).map_err(failed(format!("reading /proc/{pid}/stat")));
    let other = match (speaker != pid).then(|| settled(speaker)).flatten() {
        // All of the process may have ended meanwhile.
        Some(status) if !matches!(status.state(), 'Z' | 'X') => Some((status, stat(speaker)?)),
        _ => None,
    };
    let living = if status.state() == 'Z' && other.is_none() {
        None
    } else {
        // The iterators begin with the leader.
        Some(living(speaker, tracker.filter(|_| other.is_none()), known)?)
    };
    Ok(Gathered {
        namespaces: namespaces_of(speaker),
        status,
        stat: stat(pid)?,
        speaker: other,
        living,
    })
}

fn living(
    pid: u32,
    tracker: Option<&Tracker>,
    (ahead, paths): (&Ahead, &mut Paths),
) -> Result<Living, CheckpointError> {
    let text = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        remote::sys::read_text(&path).map_err(failed(format!("reading {path}")))
    };
    let link = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        procfs::link(&path).map_err(failed(format!("reading {path}")))
    };
    let threads = told::threads(pid, tracker);
    let areas = match ahead.areas(pid, &threads) {
        Some(areas) => areas,
        None => areas::of(pid, tracker, paths)?,
    };
    Ok(Living {
        calm: Room::find(pid as i32).is_ok_and(|room| room.is_none_or(|room| room.is_calm())),
        threads,
        areas,
        descriptors: files::list(pid, tracker),
        cwd: link("cwd")?,
        root: link("root")?,
        cwd_deleted: directory::is_deleted(&format!("/proc/{pid}/cwd")),
        limits: limits::parse(&text("limits")?),
        oom_score_adj: text("oom_score_adj")?.trim().parse().unwrap_or(0),
        // Not there in a kernel without core dumps.
        coredump_filter: text("coredump_filter")
            .ok()
            .and_then(|t| limits::coredump_filter(&t)),
    })
}
