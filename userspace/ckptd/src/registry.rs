//! The run directory: which jobs are running here, who supervises each, and where it can be reached.
//!
//! `NAME/state.json` describes a job, `NAME/control.sock` leads to its supervisor. An entry whose root and
//! supervisor have both ended is stale, and whoever comes across it under the lock removes it.

use crate::failure::{Exit, Failure};
use crate::process::ProcessId;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the supervisor of a job that has ended may take to end too.
const PATIENCE: Duration = Duration::from_secs(5);

/// What state.json says of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The job's name.
    pub name: String,
    /// The process whose exit status is the job's; none while the job is being started or restored.
    pub root: Option<ProcessId>,
    /// The init of the job's own pid namespace, if it has one.
    pub init: Option<ProcessId>,
    /// The ckptd that started or restored it.
    pub supervisor: ProcessId,
    /// The store its checkpoints go to, absolute.
    pub dir: PathBuf,
    /// The command line, for people.
    pub command: Vec<String>,
    /// When it was started or restored: nanoseconds since the epoch.
    pub started: u64,
}

impl State {
    /// The root, while it runs.
    pub(crate) fn live_root(&self) -> Option<ProcessId> {
        self.root.filter(|root| root.is_alive())
    }

    /// The root has ended, and the supervisor is about to.
    fn is_ending(&self) -> bool {
        self.root.is_some() && self.live_root().is_none()
    }

    fn is_stale(&self) -> bool {
        !self.supervisor.is_alive() && self.live_root().is_none()
    }
}

/// The directory in which this user's running jobs are registered.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    dir: PathBuf,
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
        let mut tried = Vec::new();
        for dir in candidates.into_iter().flatten() {
            match own_directory(&dir, uid.as_raw()) {
                Ok(()) => return Ok(Self { dir }),
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
        let mut jobs = Vec::new();
        let entries = fs::read_dir(&self.dir).map_err(|error| self.failure("read", error))?;
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            jobs.extend(self.live(&name)?);
        }
        jobs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(jobs)
    }

    /// The running job of that name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<State>, Failure> {
        check_name(name)?;
        let _lock = self.lock()?;
        self.live(name)
    }

    /// Where the supervisor of a job listens.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("control.sock")
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
        };
        let claim = Claim { path, state };
        claim.write()?;
        drop(lock);
        Ok(claim)
    }

    /// The entry of that name, unless it is stale; then it is removed. The lock must be held.
    fn live(&self, name: &str) -> Result<Option<State>, Failure> {
        let path = self.dir.join(name);
        let state = fs::read(path.join("state.json"))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        match state.filter(|state: &State| !state.is_stale()) {
            Some(state) => Ok(Some(state)),
            None => match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(self.failure("clean", error))
                }
                _ => Ok(None),
            },
        }
    }

    fn lock(&self) -> Result<Flock<File>, Failure> {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(self.dir.join("lock"));
        let file = file.map_err(|error| self.failure("write to", error))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| self.failure("lock", errno))
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
    path: PathBuf,
    state: State,
}

impl Claim {
    /// What is noted there.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The entry's directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes that the job runs.
    pub(crate) fn set_running(&mut self, root: u32, init: Option<u32>) -> Result<(), Failure> {
        self.state.root = ProcessId::of(root);
        self.state.init = init.and_then(ProcessId::of);
        self.write()
    }

    fn write(&self) -> Result<(), Failure> {
        let file = self.path.join("state.json");
        let text = serde_json::to_vec_pretty(&self.state).map_err(io::Error::from);
        text.and_then(|text| write_atomically(&file, &text))
            .map_err(|error| Failure::because(format!("cannot write {}", file.display()), error))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::debug!("cannot remove {}: {error}", self.path.display());
        }
    }
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
    // In /tmp, another user may have made it first, or a link in its place.
    let found = fs::symlink_metadata(dir)?;
    if !found.is_dir() || found.uid() != uid {
        return Err(io::Error::other("it belongs to another user"));
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK)?;
    Ok(())
}

/// A job's name made from the program's: what its path ends in, in letters that a name may have.
pub(crate) fn default_name(program: &str) -> String {
    let base = program
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = base
        .chars()
        .map(|c| if legal(c) { c } else { '_' })
        .take(48)
        .collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() {
        "job".to_owned()
    } else {
        name.to_owned()
    }
}

/// A job's name is that of its directory here and in the store. The store's own rule is the same or narrower.
fn check_name(name: &str) -> Result<(), Failure> {
    let why = match name {
        "" => "it is empty",
        _ if name.starts_with(['.', '-']) => "it begins with a dot or a dash",
        _ if name.len() > 128 => "it is longer than 128 bytes",
        _ if name.contains(|c: char| c == '/' || c.is_control()) => {
            "it has a slash or a control character"
        }
        _ => return Ok(()),
    };
    Err(Failure::new(format!("{name:?} cannot be the name of a job: {why}")).exit(Exit::Usage))
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
        };
        (dir, registry)
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
    fn default_names_come_from_the_program() {
        let names = ["./numpy/run.sh", "/usr/bin/[", "a b", "..", "dir/"].map(default_name);
        assert_eq!(names, ["run.sh", "_", "a_b", "job", "dir"]);
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
