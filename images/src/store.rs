use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::{Checkpoint, Error, Result, files};

/// Ends the names of files that are being written.
pub(crate) const TEMPORARY: &str = ".tmp";
/// How long to wait for who holds a job: rewriting segments does so for moments.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// The same for a new checkpoint: moments are long where storage is slow, and nobody is stopped meanwhile.
pub(crate) const PATIENCE_TO_WRITE: Duration = Duration::from_secs(10);
const MANIFEST: &str = ".ckpt";

/// A directory with the checkpoints of any number of jobs.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The store in `dir`, which is made, for its owner only, where it is not there.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when it cannot be made.
    pub fn create(dir: &Path) -> Result<Self> {
        files::create_dir(dir)?;
        Ok(Self { dir: dir.into() })
    }

    /// The store in `dir`.
    ///
    /// # Errors
    ///
    /// [`Error::NoStore`] when there is no such directory.
    pub fn open(dir: &Path) -> Result<Self> {
        let why = match std::fs::metadata(dir) {
            Ok(metadata) if metadata.is_dir() => return Ok(Self { dir: dir.into() }),
            Ok(_) => "it is not a directory".into(),
            Err(error) => error.to_string(),
        };
        Err(Error::NoStore {
            dir: dir.into(),
            why,
        })
    }

    /// The names of all jobs, sorted.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the directory cannot be read.
    pub fn jobs(&self) -> Result<Vec<String>> {
        let mut names = files::names(&self.dir)?;
        names.retain(|name| {
            check_name(name).is_ok() && self.dir.join(name).join("segments").is_dir()
        });
        Ok(names)
    }

    /// A job that is there.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`], or [`Error::NoJob`] when the store does not have it.
    pub fn job(&self, name: &str) -> Result<Job> {
        let job = self.named(name)?;
        if !job.dir.is_dir() {
            return Err(Error::NoJob {
                name: name.into(),
                dir: self.dir.clone(),
            });
        }
        Ok(job)
    }

    /// A job, which is made where it is not there.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`], or [`Error::Io`] when it cannot be made.
    pub fn create_job(&self, name: &str) -> Result<Job> {
        let job = self.named(name)?;
        if !job.segments().is_dir() {
            files::create_dir(&job.segments())?;
            files::sync_dir(&job.dir)?;
            files::sync_dir(&self.dir)?;
        }
        Ok(job)
    }

    fn named(&self, name: &str) -> Result<Job> {
        check_name(name)?;
        Ok(Job {
            name: name.into(),
            dir: self.dir.join(name),
        })
    }
}

/// A job's name is the name of its directory, and must not lead anywhere else.
fn check_name(name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.starts_with('.') {
        "it begins with a dot"
    } else if name.starts_with('-') {
        "it begins like an option"
    } else if name.len() > 128 {
        "it is longer than 128 bytes"
    } else if name.chars().any(|c| c == '/' || c.is_control()) {
        "it has a slash or a control character"
    } else {
        return Ok(());
    };
    Err(Error::BadName {
        name: name.into(),
        why,
    })
}

/// The checkpoints of one job.
#[derive(Debug, Clone)]
pub struct Job {
    name: String,
    dir: PathBuf,
}

impl Job {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The numbers of its checkpoints, ascending, whether intact or not.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the directory cannot be read.
    pub fn sequences(&self) -> Result<Vec<u64>> {
        let names = files::names(&self.dir)?;
        let mut sequences: Vec<u64> = names.iter().filter_map(|name| sequence_of(name)).collect();
        sequences.sort_unstable();
        Ok(sequences)
    }

    /// One of its checkpoints; `None` is the newest.
    ///
    /// # Errors
    ///
    /// [`Error::NoCheckpoints`], [`Error::NoCheckpoint`], those with [`Error::is_damage`], [`Error::Io`].
    pub fn checkpoint(&self, at: Option<u64>) -> Result<Checkpoint> {
        Checkpoint::open(self, self.resolve(at)?)
    }

    /// The number of the checkpoint that is meant.
    pub(crate) fn resolve(&self, at: Option<u64>) -> Result<u64> {
        let have = self.sequences()?;
        match (at, have.last()) {
            (_, None) => Err(Error::NoCheckpoints {
                job: self.name.clone(),
                dir: self.dir.clone(),
            }),
            (None, Some(&newest)) => Ok(newest),
            (Some(sequence), _) if have.contains(&sequence) => Ok(sequence),
            (Some(sequence), _) => Err(Error::NoCheckpoint {
                job: self.name.clone(),
                sequence,
                have,
            }),
        }
    }

    pub(crate) fn segments(&self) -> PathBuf {
        self.dir.join("segments")
    }

    pub(crate) fn manifest(&self, sequence: u64) -> PathBuf {
        self.dir.join(format!("{sequence:06}{MANIFEST}"))
    }

    /// As [`lock`](Self::lock), but waits for a while for who has it.
    pub(crate) fn lock_within(&self, patience: Duration) -> Result<Flock<File>> {
        let since = Instant::now();
        loop {
            match self.lock() {
                Err(Error::Busy { .. }) if since.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                locked => return locked,
            }
        }
    }

    /// Keeps other writers and `prune` away until it is dropped, by whatever death.
    pub(crate) fn lock(&self) -> Result<Flock<File>> {
        let path = self.dir.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let _ = file.take(20).read_to_string(&mut text);
                return Err(Error::Busy {
                    job: self.name.clone(),
                    holder: text.trim().parse().ok(),
                });
            }
            Err((_, errno)) => return Err(Error::io("lock", &path)(errno.into())),
        };
        // Who holds it is for people; a full disk may keep it from being written.
        let _ = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(lock)
    }
}

/// The number in a manifest's file name.
pub(crate) fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(MANIFEST)?;
    let sequence = digits.parse().ok()?;
    (sequence > 0 && format!("{sequence:06}") == digits).then_some(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_store() {
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "/etc",
            "../x",
            "-x",
            "a\nb",
            "a\0b",
            &"x".repeat(129),
        ] {
            assert!(
                matches!(check_name(bad), Err(Error::BadName { .. })),
                "{bad:?}"
            );
        }
        for good in ["a", "job-1", "a.b", "..a".trim_start_matches('.'), "Größe"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn only_manifests_count_as_checkpoints() {
        assert_eq!(sequence_of("000001.ckpt"), Some(1));
        assert_eq!(sequence_of("1234567.ckpt"), Some(1_234_567));
        for other in [
            "000000.ckpt",
            "1.ckpt",
            "0000001.ckpt",
            "000001.ckpt.tmp",
            "+00001.ckpt",
            "lock",
        ] {
            assert_eq!(sequence_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_job_is_locked_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let job = Store::create(dir.path()).unwrap().create_job("j").unwrap();
        let held = job.lock().unwrap();
        match job.lock() {
            Err(Error::Busy { holder, .. }) => assert_eq!(holder, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(held);
        job.lock().unwrap();
    }
}
