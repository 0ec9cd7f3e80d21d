//! Control groups that the job has put its processes into (cgroups(7)): made again where they are missing.
//!
//! Groups of the job as a whole are those of whoever starts or restores it: a batch system gives it others each time.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use images::proto::{Cgroup, CgroupSetting, Process, Snapshot};

use crate::Refusal;
use crate::plan::Step;

/// What a group may use, of both versions; in an order in which the kernel takes it.
const SETTINGS: &[&str] = &[
    "cpuset.cpus",
    "cpuset.mems",
    "pids.max",
    "cpu.max",
    "cpu.weight",
    "cpu.shares",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "io.weight",
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.swap.max",
    "memory.limit_in_bytes",
    "memory.soft_limit_in_bytes",
];

/// Controllers and path of each line of /proc/PID/cgroup.
fn lines(pid: u32) -> Vec<(String, String)> {
    let text = remote::sys::read_text(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let line = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        Some((controllers.to_owned(), path.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// Where a hierarchy is mounted: as a whole, and to be seen by us.
fn mounted(controllers: &str) -> Option<PathBuf> {
    let text = remote::sys::read_text("/proc/self/mountinfo").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let kind = after.next()?;
        let options = after.nth(1)?;
        let mut before = before.split(' ').skip(3);
        let (root, at) = (before.next()?, before.next()?);
        let has = |one: &str| options.split(',').any(|option| option == one);
        let wanted = match controllers {
            "" => kind == "cgroup2",
            all => kind == "cgroup" && all.split(',').all(has),
        };
        (wanted && root == "/").then(|| PathBuf::from(at))
    });
    lines.next()
}

fn directory(cgroup: &Cgroup) -> Option<PathBuf> {
    Some(mounted(&cgroup.controllers)?.join(cgroup.path.trim_start_matches('/')))
}

/// Those of a process that differ from the ones of `starter`, who started the job.
pub(crate) fn capture(pid: u32, starter: u32) -> Vec<Cgroup> {
    let theirs = lines(starter);
    let own = lines(pid).into_iter().filter(|line| !theirs.contains(line));
    let describe = |(controllers, path): (String, String)| {
        let mut cgroup = Cgroup {
            controllers,
            path,
            settings: Vec::new(),
        };
        let Some(at) = directory(&cgroup) else {
            return cgroup;
        };
        let setting = |file: &&str| {
            let value = remote::sys::read_text(at.join(file)).ok()?;
            Some(CgroupSetting {
                file: (*file).to_owned(),
                value: value.trim().to_owned(),
            })
        };
        cgroup.settings = SETTINGS.iter().filter_map(setting).collect();
        cgroup
    };
    own.map(describe).collect()
}

/// Everybody enters those of its own.
pub(crate) fn steps(snapshot: &Snapshot) -> impl Iterator<Item = Step> {
    let alive = snapshot.processes.iter();
    let own = alive.filter(|process| !process.cgroups.is_empty());
    own.map(|process| Step::Cgroups { pid: process.pid })
}

/// Groups that this host has no place for.
pub(crate) fn check(snapshot: &Snapshot) -> Vec<Refusal> {
    let mut refusals: Vec<Refusal> = Vec::new();
    for process in &snapshot.processes {
        for cgroup in &process.cgroups {
            let what = format!("control group {}:{}", cgroup.controllers, cgroup.path);
            let (why, advice) = match directory(cgroup) {
                None => (
                    "its hierarchy is not mounted here".to_owned(),
                    "mount it, or restore on a host like the one of the checkpoint",
                ),
                Some(at) => match nearest(&at) {
                    Some(_) => continue,
                    None => (
                        format!("{} is not to be written to", at.display()),
                        "restore as a user who may make that group",
                    ),
                },
            };
            if !refusals.iter().any(|other| other.what == what) {
                let advice = advice.to_owned();
                let pid = process.pid;
                refusals.push(Refusal {
                    pid,
                    what,
                    why,
                    advice,
                });
            }
        }
    }
    refusals
}

/// The group itself or the nearest above it, if we may write there.
fn nearest(at: &Path) -> Option<&Path> {
    let there = at.ancestors().find(|above| above.is_dir())?;
    let may = nix::unistd::access(there, nix::unistd::AccessFlags::W_OK).is_ok();
    may.then_some(there)
}

/// Puts a process, by its pid as we see it, into its groups; those that are missing are made as they were.
pub(crate) fn enter(process: &Process, pid: u32) -> std::io::Result<()> {
    let failed = |at: &Path, error: std::io::Error| {
        std::io::Error::new(error.kind(), format!("{}: {error}", at.display()))
    };
    for cgroup in &process.cgroups {
        let Some(at) = directory(cgroup) else {
            continue;
        };
        if !at.is_dir() {
            std::fs::create_dir_all(&at).map_err(|error| failed(&at, error))?;
            for setting in &cgroup.settings {
                let file = at.join(&setting.file);
                // What a new group has anyway may not be allowed to be set.
                let now = remote::sys::read_text(&file).unwrap_or_default();
                if now.trim() != setting.value {
                    std::fs::write(&file, &setting.value).map_err(|error| failed(&file, error))?;
                }
            }
        }
        let members = at.join("cgroup.procs");
        let opened = std::fs::File::options().write(true).open(&members);
        let entered = opened.and_then(|mut file| file.write_all(pid.to_string().as_bytes()));
        entered.map_err(|error| failed(&members, error))?;
    }
    Ok(())
}
