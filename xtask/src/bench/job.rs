//! The jobs that are saved and brought back: benches/workloads/*.c, and what they tell in files (see job.h there).

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program with arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    arguments: &'static [&'static str],
    /// With --quick.
    quick: &'static [&'static str],
    /// The most of the peer's time that a checkpoint and a restore should take.
    pub(crate) target: f64,
}

pub(crate) const NAMES: [&str; 8] = [
    "trivial",
    "mappings",
    "files",
    "threads",
    "processes",
    "memory",
    "memory-numbers",
    "memory-4g",
];

pub(crate) const WORKLOADS: [Workload; 8] = [
    Workload::same(NAMES[0], "trivial", &[], 1.0),
    Workload::same(NAMES[1], "mappings", &["10000"], 0.5),
    Workload::same(NAMES[2], "files", &["1000"], 0.5),
    Workload::same(NAMES[3], "threads", &["64"], 0.5),
    Workload::same(NAMES[4], "processes", &["64"], 0.5),
    Workload {
        quick: &["256", "noise"],
        ..Workload::same(NAMES[5], "memory", &["1024", "noise"], 0.7)
    },
    Workload {
        quick: &["256", "numbers"],
        ..Workload::same(NAMES[6], "memory", &["1024", "numbers"], 1.0)
    },
    Workload {
        quick: &["512", "noise"],
        ..Workload::same(NAMES[7], "memory", &["4096", "noise"], 0.7)
    },
];

impl Workload {
    pub(crate) const fn same(
        name: &'static str,
        program: &'static str,
        arguments: &'static [&'static str],
        target: f64,
    ) -> Self {
        Self {
            name,
            program,
            arguments,
            quick: arguments,
            target,
        }
    }
}

/// How long a job may take to get ready, to run again, or to check itself.
const PATIENCE: Duration = Duration::from_secs(600);

/// The directory in which a job tells how it is.
pub(crate) struct Told(PathBuf);

impl Told {
    pub(crate) fn new(dir: &Path) -> Self {
        Self(dir.into())
    }

    /// Waits until it is as large as it will be.
    pub(crate) fn ready(&self) -> Result<()> {
        self.wait_until("ready", || self.0.join("ready").exists().then_some(()))
    }

    /// How many pages it has written.
    pub(crate) fn written(&self) -> f64 {
        let text = fs::read_to_string(self.0.join("written")).unwrap_or_default();
        text.parse().unwrap_or(0.0)
    }

    /// Each time that it stood still: from, to, in nanoseconds.
    fn gaps(&self) -> Vec<(u64, u64)> {
        self.times("gaps")
    }

    /// When the last slow round ended that began before `until` and ended after `since`.
    pub(crate) fn last_slow(&self, since: u64, until: u64) -> Option<u64> {
        let rounds = self.times("slow").into_iter();
        let slow = rounds.filter(|(from, to)| *from < until && *to > since);
        slow.map(|(_, to)| to).max()
    }

    fn times(&self, file: &str) -> Vec<(u64, u64)> {
        let text = fs::read_to_string(self.0.join(file)).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        lines
            .filter_map(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)))
            .collect()
    }

    /// The longest it stood still since `since`, in seconds; 0 when that was less than a millisecond.
    pub(crate) fn longest_gap(&self, since: u64) -> f64 {
        let gaps = self.gaps().into_iter().filter(|(_, to)| *to > since);
        gaps.map(|(from, to)| to - from).max().unwrap_or(0) as f64 / 1e9
    }

    /// Waits until it runs that was dead at `since`; gives when it did.
    pub(crate) fn wait_for_resume(&self, since: u64) -> Result<u64> {
        let resumed = || {
            self.gaps()
                .into_iter()
                .find(|(from, to)| *from < since && *to > since)
        };
        self.wait_until("running again", resumed).map(|(_, to)| to)
    }

    /// Has it check itself and end.
    pub(crate) fn verify(&self) -> Result<()> {
        self.end();
        let verdict = self.wait_until("done checking itself", || {
            fs::read_to_string(self.0.join("verdict")).ok()
        })?;
        if verdict != "ok" {
            bail!("after the restore: {verdict}");
        }
        Ok(())
    }

    /// Has it end, if it runs.
    pub(crate) fn end(&self) {
        let _ = fs::write(self.0.join("check"), "");
    }

    pub(crate) fn wait_until<T>(&self, what: &str, done: impl Fn() -> Option<T>) -> Result<T> {
        let since = Instant::now();
        loop {
            if let Some(done) = done() {
                return Ok(done);
            }
            if since.elapsed() > PATIENCE {
                bail!("the job is not {what} after {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A job that runs, or will again.
pub(crate) struct Job {
    pub(crate) told: Told,
    child: Child,
}

impl Job {
    /// Starts it, and waits until it is as large as it will be.
    pub(crate) fn start(
        workload: &Workload,
        programs: &Path,
        dir: &Path,
        quick: bool,
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let child = Command::new(programs.join(workload.program))
            .arg(dir)
            .args(if quick {
                workload.quick
            } else {
                workload.arguments
            })
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", workload.program))?;
        let told = Told::new(dir);
        let job = Self { told, child };
        job.told.ready()?;
        Ok(job)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes it has resident, without its children.
    pub(crate) fn memory(&self) -> Result<u64> {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid()))?;
        let pages: u64 = statm
            .split(' ')
            .nth(1)
            .context("statm has no second field")?
            .parse()?;
        Ok(pages * 4096)
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) -> Result<()> {
        for pid in self.tree() {
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .stderr(Stdio::null())
                .status();
        }
        self.child.wait()?;
        self.gone()
    }

    /// All its processes: those of the session it leads, zombies too, whose pids are still taken.
    fn tree(&self) -> Vec<u32> {
        let own = self.pid().to_string();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        pids.filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // After the name, which may hold anything: state, parent, group, session.
            let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
            (fields.get(3) == Some(&own.as_str())).then_some(())?;
            entry.file_name().to_str()?.parse().ok()
        })
        .collect()
    }

    /// Has it check itself and end.
    pub(crate) fn verify(&self) -> Result<()> {
        self.told.verify()?;
        self.gone()
    }

    fn gone(&self) -> Result<()> {
        let gone = || self.tree().is_empty().then_some(());
        self.told.wait_until("dead", gone)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
