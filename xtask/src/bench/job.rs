//! What a job tells in files how it is: see benches/workloads/job.h.

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a job may take to get ready, to run again, or to check itself.
const PATIENCE: Duration = Duration::from_secs(300);

/// The directory in which a job tells how it is.
pub(crate) struct Told(PathBuf);

impl Told {
    pub(crate) fn new(dir: &Path) -> Self {
        Self(dir.into())
    }

    /// The job's pid, once it is as large as it will be.
    pub(crate) fn ready(&self) -> Option<u32> {
        self.text("ready").trim().parse().ok()
    }

    /// What it has written to a file; nothing of one that is not there.
    pub(crate) fn text(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap_or_default()
    }

    /// How many pages it has written.
    pub(crate) fn written(&self) -> f64 {
        self.text("written").parse().unwrap_or(0.0)
    }

    /// Times from, to, in nanoseconds.
    fn times(&self, file: &str) -> Vec<(u64, u64)> {
        let text = self.text(file);
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        lines
            .filter_map(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)))
            .collect()
    }

    /// When the last slow round ended that began before `until` and ended after `since`.
    pub(crate) fn last_slow(&self, since: u64, until: u64) -> Option<u64> {
        let rounds = self.times("slow").into_iter();
        let slow = rounds.filter(|(from, to)| *from < until && *to > since);
        slow.map(|(_, to)| to).max()
    }

    /// The longest it stood still since `since`, in seconds; 0 when that was less than a millisecond.
    pub(crate) fn longest_gap(&self, since: u64) -> f64 {
        let gaps = self.times("gaps").into_iter();
        let gaps = gaps.filter(|(_, to)| *to > since);
        gaps.map(|(from, to)| to - from).max().unwrap_or(0) as f64 / 1e9
    }

    /// How long it waited for memory, each time since `since`, in seconds.
    pub(crate) fn waits(&self, since: u64) -> Vec<f64> {
        let waits = self.times("waits").into_iter();
        let waits = waits.filter(|(from, _)| *from > since);
        waits.map(|(from, to)| (to - from) as f64 / 1e9).collect()
    }

    /// When it first ran that was dead at `since`.
    pub(crate) fn resumed(&self, since: u64) -> Option<u64> {
        let mut gaps = self.times("gaps").into_iter();
        let gap = gaps.find(|(from, to)| *from < since && *to > since);
        gap.map(|(_, to)| to)
    }

    pub(crate) fn wait_for_resume(&self, since: u64) -> Result<u64> {
        self.wait_until("running again", || self.resumed(since))
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

    /// It may be brought back once more.
    pub(crate) fn again(&self) -> Result<()> {
        for file in ["check", "verdict"] {
            fs::remove_file(self.0.join(file))?;
        }
        Ok(())
    }

    /// Ends all its processes without a word.
    pub(crate) fn kill(&self, leader: u32) {
        for pid in tree(leader) {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
    }

    /// Waits until none of its processes is left.
    pub(crate) fn gone(&self, leader: u32) -> Result<()> {
        self.wait_until("dead", || tree(leader).is_empty().then_some(()))
    }

    pub(crate) fn wait_until<T>(&self, what: &str, done: impl Fn() -> Option<T>) -> Result<T> {
        self.wait_until_or(what, |_| Ok(done()))
    }

    /// Waits until `done` gives something or fails.
    pub(crate) fn wait_until_or<T>(
        &self,
        what: &str,
        mut done: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let since = Instant::now();
        loop {
            if let Some(done) = done(self)? {
                return Ok(done);
            }
            if since.elapsed() > PATIENCE {
                bail!("the job is not {what} after {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The processes of the session or group that `leader` leads: zombies too, whose pids are still taken.
fn tree(leader: u32) -> Vec<u32> {
    let leader = leader.to_string();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // After the name, which may hold anything: state, parent, group, session.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        fields.get(2..4)?.contains(&leader.as_str()).then_some(())?;
        entry.file_name().to_str()?.parse().ok()
    })
    .collect()
}
