//! Descriptors and the open files behind them. Each kind of file is a module with its capture and its rebuild; this one finds out
//! what shares what, and hands files from the process that opens them to the others that hold them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use images::proto::{Inode, OpenFile, Owner};
use remote::sys;

use crate::freeze::failed;
use crate::procfs;
use crate::{CheckpointError, TcpPolicy};

mod bulk;
pub(crate) mod datagram;
pub(crate) mod device;
pub(crate) mod directory;
pub(crate) mod epoll;
pub(crate) mod eventfd;
pub(crate) mod inet;
pub(crate) mod inotify;
pub(crate) mod lock;
mod making;
pub(crate) mod object;
pub(crate) mod options;
pub(crate) mod outer;
pub(crate) mod path;
pub(crate) mod pidfd;
pub(crate) mod pipe;
pub(crate) mod posix_queue;
pub(crate) mod proc;
pub(crate) mod pty;
pub(crate) mod reach;
pub(crate) mod regular;
mod shell;
pub(crate) mod signalfd;
mod table;
pub(crate) mod timerfd;
pub(crate) mod unix;

pub(crate) use bulk::{found, key, list};
use making::set_owner;
pub(crate) use making::{Making, STATUS_FLAGS, has_sockets, usual_mode};
pub(crate) use shell::{Numbers, Shell};
pub(crate) use table::{Harmless, Table};

/// fcntl(2), include/uapi/asm-generic/fcntl.h.
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;

/// What a plan is told of the network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network {
    /// Connections that lead out of the job.
    pub(crate) tcp: TcpPolicy,
    /// The job has one of its own.
    pub(crate) own: bool,
}

/// Why something is refused, and what to do.
pub(crate) type Why = (String, String);

/// One descriptor of a stopped process, as a capture sees it.
pub(crate) struct Held {
    pub(crate) pid: u32,
    pub(crate) fd: u32,
    /// Our own duplicate of it.
    pub(crate) file: OwnedFd,
    pub(crate) meta: std::fs::Metadata,
    /// Where /proc/PID/fd/N leads.
    pub(crate) link: String,
    /// O_* as fcntl(F_GETFL) gives them.
    pub(crate) flags: u32,
    pub(crate) info: String,
}

impl Held {
    /// A descriptor of ours.
    fn own(fd: OwnedFd) -> std::io::Result<Self> {
        let file = File::from(fd);
        let info = sys::fdinfo(&file)?;
        Ok(Self {
            pid: std::process::id(),
            fd: std::os::fd::AsRawFd::as_raw_fd(&file) as u32,
            meta: file.metadata()?,
            link: sys::path_of(&file)?,
            flags: flags(&info),
            info,
            file: file.into(),
        })
    }

    /// A number of /proc/PID/fdinfo/N.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let value = self
            .info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
            .trim();
        value.strip_prefix("0x").map_or_else(
            || value.parse().ok(),
            |hex| u64::from_str_radix(hex, 16).ok(),
        )
    }
}

fn hold(pid: u32, pidfd: &OwnedFd, fd: u32) -> Result<Held, CheckpointError> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let link = procfs::link(&path).map_err(failed(format!("reading {path}")))?;
    let info_path = format!("/proc/{pid}/fdinfo/{fd}");
    let info = sys::read_text(&info_path).map_err(failed(format!("reading {info_path}")))?;
    let file = sys::pidfd_getfd(pidfd, fd).map_err(failed(format!(
        "duplicating descriptor {fd} of process {pid}"
    )))?;
    let file = File::from(file);
    let meta = file
        .metadata()
        .map_err(failed(format!("looking at {path}")))?;
    let flags = flags(&info);
    Ok(Held {
        pid,
        fd,
        file: file.into(),
        meta,
        link,
        flags,
        info,
    })
}

/// The same of a descriptor of which all that /proc shows is told.
fn hold_told(
    pid: u32,
    pidfd: &OwnedFd,
    told: tracker::Descriptor,
) -> Result<Held, CheckpointError> {
    let fd = told.fd;
    let duplicating = || format!("duplicating descriptor {fd} of process {pid}");
    let file = sys::pidfd_getfd(pidfd, fd).map_err(failed(duplicating()))?;
    let file = File::from(file);
    let meta = file.metadata().map_err(failed(duplicating()))?;
    Ok(Held {
        pid,
        fd,
        file: file.into(),
        meta,
        link: told.path.unwrap_or_default(),
        flags: told.flags,
        info: String::new(),
    })
}

/// O_* in /proc/PID/fdinfo/N.
fn flags(info: &str) -> u32 {
    let octal = info.lines().find_map(|line| line.strip_prefix("flags:"));
    u32::from_str_radix(octal.unwrap_or_default().trim(), 8).unwrap_or(0)
}

/// Whose a pipe or socket is, unless that is as usual with root.
fn inode(held: &Held, file: &OpenFile) -> Option<Inode> {
    let usual = usual_mode(file)?;
    let mode = held.meta.mode() & 0o7777;
    let inode = Inode {
        mode: if mode == usual { 0 } else { mode },
        uid: held.meta.uid(),
        gid: held.meta.gid(),
    };
    (inode != Inode::default()).then_some(inode)
}

/// Who gets signals about a descriptor (F_SETOWN_EX, F_SETSIG).
fn owner(held: &Held) -> Option<Owner> {
    let (kind, pid) = sys::owner(&held.file).ok()?;
    let signal = sys::fcntl(&held.file, F_GETSIG, 0).unwrap_or(0);
    // In the pid namespace of the job, whether it is a thread, a process or a group.
    let inner = procfs::Status::read(pid as u32).map(|status| status.inner("NSpid") as i32);
    let pid = inner.unwrap_or(pid);
    (pid != 0 || signal != 0).then_some(Owner {
        pid,
        r#type: kind as u32,
        signal: signal as u32,
    })
}
