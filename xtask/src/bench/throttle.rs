//! A disk that is slow: this process, and what it starts, may read no more than so much of it in a second.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Until it is dropped.
pub(crate) struct Throttle {
    group: PathBuf,
    /// The group that processes without one are in.
    top: PathBuf,
}

/// Where the two versions of control groups are, and their files that limit reads.
const TOPS: [(&str, &str); 2] = [
    ("/sys/fs/cgroup", "io.max"),
    ("/sys/fs/cgroup/blkio", "blkio.throttle.read_bps_device"),
];

impl Throttle {
    /// Of the disk that `dir` lies on.
    pub(crate) fn begin(dir: &Path, mebibytes: u64) -> Result<Self> {
        let disk = disk_of(dir)?;
        let bytes = mebibytes << 20;
        let mut why = Vec::new();
        for (top, file) in TOPS {
            let limit = match file {
                "io.max" => format!("{disk} rbps={bytes}"),
                _ => format!("{disk} {bytes}"),
            };
            match Self::enter(Path::new(top), file, &limit) {
                Ok(throttle) => return Ok(throttle),
                Err(error) => why.push(format!("{error:#}")),
            }
        }
        anyhow::bail!("reads of this disk cannot be limited: {}", why.join("; "))
    }

    fn enter(top: &Path, file: &str, limit: &str) -> Result<Self> {
        if file == "io.max" {
            // It may be on already, or not ours to turn on.
            let _ = fs::write(top.join("cgroup.subtree_control"), "+io");
        }
        let group = top.join(format!("ckptd-bench-{}", std::process::id()));
        fs::create_dir_all(&group).with_context(|| format!("cannot make {}", group.display()))?;
        let throttle = Self {
            group,
            top: top.into(),
        };
        let limits = throttle.group.join(file);
        ensure!(limits.exists(), "there is no {}", limits.display());
        fs::write(&limits, limit).with_context(|| format!("{}: {limit}", limits.display()))?;
        fs::write(
            throttle.group.join("cgroup.procs"),
            std::process::id().to_string(),
        )?;
        Ok(throttle)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let _ = fs::write(
            self.top.join("cgroup.procs"),
            std::process::id().to_string(),
        );
        // It stays while somebody is in it who is about to end.
        for _ in 0..100 {
            if fs::remove_dir(&self.group).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// MAJOR:MINOR of the whole disk.
fn disk_of(dir: &Path) -> Result<String> {
    let device = fs::metadata(dir)?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let block = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let whole = if block.join("partition").exists() {
        block.join("..")
    } else {
        block
    };
    let text = fs::read_to_string(whole.join("dev"))
        .with_context(|| format!("{} is not on a disk", dir.display()))?;
    Ok(text.trim().to_owned())
}
