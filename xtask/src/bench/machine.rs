//! The machine: what it is, and what it can do at best.

use super::scenario::Floor;
use anyhow::{Context, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};
use std::fs;
use std::hint::black_box;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What the machine is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) kernel: String,
    /// What transparent huge pages are set to.
    pub(crate) huge_pages: String,
    /// The file systems that images go to: in memory, and on disk.
    pub(crate) places: [String; 2],
    /// How busy it was before: the load of the last minute.
    pub(crate) load: f64,
}

/// What the machine can do at best.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Bytes a second of memory copied to memory that is there, by one thread.
    pub(crate) copy: f64,
    /// Bytes a second of memory that is had for the first time and filled.
    pub(crate) fill: f64,
    /// Bytes a second written to disk, until they are there.
    pub(crate) write: f64,
    /// Bytes a second read from disk.
    pub(crate) read: f64,
    /// Seconds that the first write to a page takes.
    pub(crate) fault: f64,
    /// Seconds from starting a process that does nothing to its end.
    pub(crate) spawn: f64,
}

impl Machine {
    pub(crate) fn this(memory: &Path, disk: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let kib = field(&text("/proc/meminfo"), "MemTotal");
        let kib = kib
            .split(' ')
            .next()
            .and_then(|kib| kib.parse::<u64>().ok());
        let huge = text("/sys/kernel/mm/transparent_hugepage/enabled");
        let chosen = huge
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'));
        let load = text("/proc/loadavg");
        Self {
            cpu: field(&text("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            memory: kib.unwrap_or(0) * 1024,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            huge_pages: chosen.map_or("not there", |(chosen, _)| chosen).to_owned(),
            places: [memory, disk].map(file_system),
            load: load
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(0.0),
        }
    }
}

/// Its type and where it is.
fn file_system(path: &Path) -> String {
    use nix::sys::statfs::{EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, statfs};
    let kind = match statfs(path).map(|found| found.filesystem_type()) {
        Ok(TMPFS_MAGIC) => "tmpfs",
        Ok(EXT4_SUPER_MAGIC) => "ext4",
        Ok(XFS_SUPER_MAGIC) => "xfs",
        _ => "another file system",
    };
    format!("{} ({kind})", path.display())
}

impl Limits {
    /// Measures them with so many bytes; each the best of three.
    pub(crate) fn measure(disk: &Path, bytes: usize) -> Result<Self> {
        let source = vec![1_u8; bytes];
        let mut copied = vec![2_u8; bytes];
        let copy = best(|| {
            black_box(&mut copied).copy_from_slice(black_box(&source));
            Ok(())
        })?;
        drop(copied);
        let fill = best(|| {
            drop(black_box(black_box(&source).clone()));
            Ok(())
        })?;
        // Pages of a quarter of that, one byte each.
        let pages = bytes / 4 / 4096;
        let touch = best(|| {
            let mut fresh = vec![0_u8; pages * 4096];
            fresh.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
            drop(black_box(fresh));
            Ok(())
        })?;
        let path = disk.join(format!("ckptd-limits-{}", std::process::id()));
        let write = best(|| {
            let mut file = fs::File::create(&path)?;
            file.write_all(&source)?;
            Ok(file.sync_all()?)
        })?;
        let mut buffer = vec![0; 1 << 20];
        let read = best(|| {
            let mut file = fs::File::open(&path)?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            while file.read(&mut buffer)? > 0 {}
            Ok(())
        })?;
        fs::remove_file(&path)?;
        let spawn = best(|| {
            let status = Command::new("true").stdin(Stdio::null()).status();
            status.context("cannot run true")?;
            Ok(())
        })?;
        let rate = |seconds: f64| bytes as f64 / seconds;
        Ok(Self {
            copy: rate(copy),
            fill: rate(fill),
            write: rate(write),
            read: rate(read),
            fault: touch / pages as f64,
            spawn,
        })
    }

    /// The least that something takes, in seconds.
    pub(crate) fn floor(&self, floor: Floor) -> f64 {
        match floor {
            Floor::Copy(bytes) => bytes as f64 / self.copy,
            Floor::Fill(bytes) => bytes as f64 / self.fill,
            Floor::Write(bytes) => bytes as f64 / self.write,
            Floor::Read(bytes) => bytes as f64 / self.read,
            Floor::Fault => self.fault,
            Floor::Spawn => self.spawn,
        }
    }
}

/// Seconds that it takes at best.
fn best(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let since = Instant::now();
        work()?;
        best = best.min(since.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// A hypervisor may give memory only when it is first touched, at a price that is not the tools': so much of it is
/// touched and freed again right before it is needed.
pub(crate) fn warm(dir: &Path, bytes: u64) -> Result<()> {
    let path = dir.join(format!("ckptd-warm-{}", std::process::id()));
    let mut file =
        fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let bytes = bytes + bytes / 8 + (64 << 20);
    std::io::copy(&mut std::io::repeat(1).take(bytes), &mut file)?;
    drop(file);
    Ok(fs::remove_file(&path)?)
}
