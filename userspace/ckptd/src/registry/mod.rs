//! The run directory: which jobs are running here, who supervises each, and where it can be reached.
//!
//! `NAME/state.json` describes a job, `NAME/control.sock` leads to its supervisor. An entry whose root and
//! supervisor have both ended is stale, and whoever comes across it under the lock removes it.

mod name;
mod state;

pub(crate) use name::default_name;
pub(crate) use state::State;

use crate::failure::{Exit, Failure};
use crate::process::ProcessId;
use name::check_name;
use nix::fcntl::{Flock, FlockArg};
use state::live;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the supervisor of a job that has ended may take to end too.
const PATIENCE: Duration = Duration::from_secs(5);

/// The directory in which this user's running jobs are registered.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    dir: PathBuf,
    /// Others that jobs may be registered in: XDG_RUNTIME_DIR is not there in every session.
    further: Vec<PathBuf>,
}

impl Registry {
    /// Opens it, and makes it when it is not there: /run/ckptd for root, else $XDG_RUNTIME_DIR/ckptd, else
    /// /tmp/ckptd-UID.
    pub(crate) fn open() -> Result<Self, Failure> {
        let uid = nix::unistd::geteuid();
        let candidates = [
            uid.is_root().then(|| PathBuf::from("/run/ckptd")),
            std::env::var_os("XDG_RUNTIME_DIR")
                .filter(|dir| !dir.is_empty())
                .map(|dir| Path::new(&dir).join("ckptd")),
            Some(PathBuf::from(format!("/tmp/ckptd-{uid}"))),
        ];
        let mut candidates = candidates.into_iter().flatten();
        let mut tried = Vec::new();
        for dir in candidates.by_ref() {
            match own_directory(&dir, uid.as_raw()) {
                Ok(()) => {
                    let further = candidates
                        .filter(|dir| is_own(dir, uid.as_raw()).is_ok())
                        .collect();
                    return Ok(Self { dir, further });
                }
                Err(error) => tried.push(format!("{}: {error}", dir.display())),
            }
        }
        Err(Failure::new(format!(
            "there is no place to note running jobs ({})",
            tried.join("; ")
        ))
        .help("set XDG_RUNTIME_DIR to a directory of your own that can be written"))
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every job that runs, by name.
    pub(crate) fn jobs(&self) -> Result<Vec<State>, Failure> {
        let _lock = self.lock()?;
        let mut names = BTreeSet::new();
        for dir in std::iter::once(&self.dir).chain(&self.further) {
            let entries = fs::read_dir(dir).map_err(|error| self.failure("read", error))?;
            let entries = entries.flatten().filter(|entry| entry.path().is_dir());
            names.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        let mut jobs = Vec::new();
        for name in names {
            jobs.extend(self.live(&name)?);
        }
        Ok(jobs)
    }

    /// The running job of that name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<State>, Failure> {
        check_name(name)?;
        let _lock = self.lock()?;
        self.live(name)
    }

    /// Takes `name` for a new job, or the first free one of NAME-2, NAME-3, ... when `or_next`.
    pub(crate) fn claim(
        &self,
        name: &str,
        or_next: bool,
        dir: &Path,
        command: &[String],
    ) -> Result<Claim, Failure> {
        check_name(name)?;
        let mut lock = self.lock()?;
        let mut chosen = name.to_owned();
        let mut number = 1;
        let begun = Instant::now();
        while let Some(live) = self.live(&chosen)? {
            if live.is_ending() && !or_next && begun.elapsed() < PATIENCE {
                drop(lock);
                std::thread::sleep(Duration::from_millis(10));
                lock = self.lock()?;
                continue;
            }
            if !or_next {
                let pid = live.live_root().unwrap_or(live.supervisor).pid;
                return Err(Failure::new(format!(
                    "a job named {name:?} is running already (process {pid})"
                ))
                .help("take another --name, or end that job first"));
            }
            number += 1;
            chosen = format!("{name}-{number}");
        }
        let path = self.dir.join(&chosen);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| self.failure("write to", error))?;
        let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let state = State {
            name: chosen,
            root: None,
            init: None,
            supervisor: ProcessId::own(),
            dir: dir.to_owned(),
            command: command.to_vec(),
            started: started.map_or(0, |time| time.as_nanos() as u64),
            entry: path,
        };
        let claim = Claim { state };
        let written = claim.write();
        // A claim that is given up takes the lock itself.
        drop(lock);
        written.map(|()| claim)
    }

    /// Takes over a running job whose supervisor has ended.
    pub(crate) fn adopt(&self, name: &str) -> Result<Claim, Failure> {
        check_name(name)?;
        let lock = self.lock()?;
        let Some(mut state) = self.live(name)? else {
            drop(lock);
            return Err(unknown(self, name));
        };
        if state.supervisor.is_alive() {
            let pid = state.supervisor.pid;
            return Err(Failure::new(format!(
                "job {name:?} has a supervisor, process {pid}"
            )));
        }
        state.supervisor = ProcessId::own();
        let claim = Claim { state };
        match claim.write() {
            Ok(()) => Ok(claim),
            Err(failure) => {
                claim.leave();
                Err(failure)
            }
        }
    }

    /// The entry of that name, unless it is stale; then it is removed. The lock must be held.
    fn live(&self, name: &str) -> Result<Option<State>, Failure> {
        let entry = self.dir.join(name);
        let further = || self.further.iter().find_map(|dir| live(dir.join(name)));
        match live(entry.clone()) {
            Some(state) => Ok(Some(state)),
            None => match fs::remove_dir_all(&entry) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(self.failure("clean", error))
                }
                _ => Ok(further()),
            },
        }
    }

    fn lock(&self) -> Result<Flock<File>, Failure> {
        lock(&self.dir).map_err(|error| self.failure("lock", error))
    }

    fn failure(&self, doing: &str, error: impl std::error::Error) -> Failure {
        Failure::because(
            format!("cannot {doing} the run directory {}", self.dir.display()),
            error,
        )
    }
}

/// A job's entry, held by its supervisor and removed with it.
#[derive(Debug)]
pub(crate) struct Claim {
    state: State,
}

impl Claim {
    /// What is noted there.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The entry's directory.
    pub(crate) fn path(&self) -> &Path {
        &self.state.entry
    }

    /// Notes that the job runs.
    pub(crate) fn set_running(&mut self, root: u32, init: Option<u32>) -> Result<(), Failure> {
        self.state.root = ProcessId::of(root);
        self.state.init = init.and_then(ProcessId::of);
        self.write()
    }

    /// Leaves the entry to a job that runs on without us.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }

    fn write(&self) -> Result<(), Failure> {
        let file = self.state.entry.join("state.json");
        let text = serde_json::to_vec_pretty(&self.state).map_err(io::Error::from);
        text.and_then(|text| write_atomically(&file, &text))
            .map_err(|error| Failure::because(format!("cannot write {}", file.display()), error))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Without the lock, an entry that somebody makes anew meanwhile would lose its files to us.
        let _lock = self.path().parent().map(lock);
        if let Err(error) = fs::remove_dir_all(self.path()) {
            tracing::debug!("cannot remove {}: {error}", self.path().display());
        }
    }
}

/// Keeps everybody else from looking at the entries of a run directory and from changing them.
fn lock(dir: &Path) -> io::Result<Flock<File>> {
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// Readers see the file as it was or as it will be, nothing between.
pub(crate) fn write_atomically(file: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let written = File::create(&temporary).and_then(|mut out| out.write_all(content));
    let renamed = written.and_then(|()| fs::rename(&temporary, file));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

/// `dir` is there, belongs to us alone and can be written.
fn own_directory(dir: &Path, uid: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = is_own(dir, uid)?;
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK)?;
    Ok(())
}

/// In /tmp, another user may have made it first, or a link in its place.
fn is_own(dir: &Path, uid: u32) -> io::Result<fs::Metadata> {
    let found = fs::symlink_metadata(dir)?;
    if !found.is_dir() || found.uid() != uid {
        return Err(io::Error::other("it belongs to another user"));
    }
    Ok(found)
}

/// No running job is called that.
pub(crate) fn unknown(registry: &Registry, name: &str) -> Failure {
    let running: Vec<String> = registry
        .jobs()
        .unwrap_or_default()
        .into_iter()
        .map(|job| job.name)
        .collect();
    let help = match running.as_slice() {
        [] => "no job runs under ckptd; start one with `ckptd run`, or name a process with --pid"
            .to_owned(),
        names => format!(
            "running: {}; or name a process with --pid",
            names.join(", ")
        ),
    };
    Failure::new(format!("no job named {name:?} is running"))
        .help(help)
        .exit(Exit::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry {
            dir: dir.path().to_owned(),
            further: Vec::new(),
        };
        (dir, registry)
    }

    #[test]
    fn an_entry_that_goes_takes_nothing_of_the_next_with_it() {
        let (_dir, registry) = registry();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        drop(registry.claim("heat", true, Path::new("/s"), &[]).unwrap());
                    }
                });
            }
        });
    }

    #[test]
    fn a_taken_name_is_refused_or_numbered() {
        let (_dir, registry) = registry();
        let first = registry.claim("heat", true, Path::new("/s"), &[]).unwrap();
        let second = registry.claim("heat", true, Path::new("/s"), &[]).unwrap();
        assert_eq!(
            (first.state().name.as_str(), second.state().name.as_str()),
            ("heat", "heat-2")
        );
        assert!(
            registry
                .claim("heat", false, Path::new("/s"), &[])
                .unwrap_err()
                .message
                .contains("running already")
        );
        drop(first);
        assert_eq!(
            registry
                .claim("heat", true, Path::new("/s"), &[])
                .unwrap()
                .state()
                .name,
            "heat"
        );
    }

    #[test]
    fn a_running_job_is_found_with_its_root() {
        let (_dir, registry) = registry();
        let mut claim = registry
            .claim("heat", false, Path::new("/s"), &["heat".into()])
            .unwrap();
        claim.set_running(std::process::id(), None).unwrap();
        let found = registry.find("heat").unwrap().unwrap();
        assert_eq!(&found, claim.state());
        assert_eq!(found.live_root().unwrap().pid, std::process::id());
        assert_eq!(registry.jobs().unwrap().len(), 1);
    }

    #[test]
    fn a_job_registered_elsewhere_is_found_and_its_name_taken() {
        let ((_one, one), (_other, mut other)) = (registry(), registry());
        let claim = one.claim("heat", false, Path::new("/s"), &[]).unwrap();
        other.further.push(one.dir.clone());
        assert_eq!(&other.find("heat").unwrap().unwrap(), claim.state());
        assert_eq!(other.jobs().unwrap().len(), 1);
        let second = other.claim("heat", true, Path::new("/s"), &[]).unwrap();
        assert_eq!(second.state().name, "heat-2");
    }

    #[test]
    fn stale_and_broken_entries_vanish() {
        let (dir, registry) = registry();
        let mut claim = registry.claim("old", false, Path::new("/s"), &[]).unwrap();
        claim.state.supervisor.start += 1;
        claim.write().unwrap();
        fs::create_dir(dir.path().join("broken")).unwrap();
        assert_eq!(registry.jobs().unwrap(), []);
        assert!(!dir.path().join("old").exists() && !dir.path().join("broken").exists());
    }

    #[test]
    fn the_job_outlives_its_supervisor() {
        let (_dir, registry) = registry();
        let mut claim = registry.claim("heat", false, Path::new("/s"), &[]).unwrap();
        claim.set_running(std::process::id(), None).unwrap();
        claim.state.supervisor.start += 1;
        claim.write().unwrap();
        assert!(registry.find("heat").unwrap().is_some());
    }

    #[test]
    fn a_directory_of_someone_else_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        assert!(own_directory(dir.path(), nix::unistd::geteuid().as_raw()).is_ok());
        assert!(own_directory(dir.path(), 12345).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(own_directory(&link, nix::unistd::geteuid().as_raw()).is_err());
    }
}
