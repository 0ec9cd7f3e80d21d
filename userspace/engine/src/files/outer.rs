//! What leads out of the job: its terminal, and pipes or sockets that are its standard input, output or error.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{self, OpenFile, Snapshot, Terminal};
use nix::unistd::{Pid, getpgid, getpgrp, tcgetpgrp, tcsetpgrp};
use remote::sys;

use super::{Held, Shell};
use crate::host::Host;
use crate::procfs;

// include/uapi/asm-generic/ioctls.h
const TCGETS: u64 = 0x5401;
const TCSETS: u64 = 0x5402;
const TIOCGWINSZ: u64 = 0x5413;

/// The standard descriptors through which a job reaches the outside.
#[derive(Debug, Default)]
pub(crate) struct Outer {
    /// Device, inode, device number and file type of descriptors 0, 1 and 2.
    stdio: [Option<(u64, u64, u64, u32)>; 3],
    /// Further descriptors that the job has from whoever started its supervisor.
    inherited: Vec<(u32, (u64, u64, u64, u32))>,
}

fn key(meta: &std::fs::Metadata) -> (u64, u64, u64, u32) {
    (
        meta.dev(),
        meta.ino(),
        meta.rdev(),
        meta.mode() & libc::S_IFMT,
    )
}

impl Outer {
    /// Those of a process.
    ///
    /// Of a process of the job itself only the standard ones count: everything else it holds is the job's own.
    pub(crate) fn of(pid: u32, in_job: bool) -> Self {
        let look = |fd: u32| {
            std::fs::metadata(format!("/proc/{pid}/fd/{fd}"))
                .ok()
                .map(|meta| key(&meta))
        };
        let more = procfs::numbered(&format!("/proc/{pid}/fd"))
            .into_iter()
            .filter(|&fd| fd > 2 && !in_job);
        Self {
            stdio: [0, 1, 2].map(look),
            inherited: more.filter_map(|fd| Some((fd, look(fd)?))).collect(),
        }
    }

    fn number(&self, held: &Held) -> Option<u32> {
        let position = self
            .stdio
            .iter()
            .position(|stdio| *stdio == Some(key(&held.meta)))?;
        // The same object may be there more than once: prefer the number it has.
        let own = self
            .stdio
            .get(held.fd as usize)
            .is_some_and(|stdio| *stdio == Some(key(&held.meta)));
        Some(if own { held.fd } else { position as u32 })
    }

    /// The terminal the job was started on.
    pub(crate) fn terminal(&self, held: &Held) -> Option<Kind> {
        if held.meta.mode() & libc::S_IFMT != libc::S_IFCHR || self.number(held).is_none() {
            return None;
        }
        let termios = sys::ioctl_read(&held.file, TCGETS, 36).ok()?;
        let (rows, columns) = size(&held.file);
        Some(Kind::Terminal(Terminal {
            termios,
            rows,
            columns,
            path: held.link.clone(),
        }))
    }

    /// A descriptor from outside that is neither a terminal nor a file.
    pub(crate) fn object(&self, held: &Held) -> Option<Kind> {
        // All of these have one inode: sameness cannot be told by it.
        if held.link.starts_with("anon_inode:") {
            return None;
        }
        let inherited = || {
            self.inherited
                .iter()
                .find(|(_, other)| *other == key(&held.meta))
                .map(|(fd, _)| *fd)
        };
        let fd = self.number(held).or_else(inherited)?;
        Some(Kind::Outer(proto::Outer {
            fd,
            what: held.link.clone(),
        }))
    }
}

/// Whoever had the other end of a descriptor beyond the standard ones is gone: nobody reads what is written there.
pub(crate) fn open(shell: &mut Shell) -> u32 {
    shell.open_path("/dev/null", libc::O_RDWR as u32)
}

/// Which of `restore`'s own standard descriptors stands in for the file when it is restored as descriptor `fd`.
pub(crate) fn number(file: &OpenFile, fd: u32, host: &Host) -> Option<u32> {
    match &file.kind {
        Some(Kind::Outer(outer)) if outer.fd <= 2 => Some(outer.fd),
        Some(Kind::Terminal(_)) if fd <= 2 => Some(fd),
        Some(Kind::Terminal(_)) => Some(host.terminal.unwrap_or(0)),
        _ => None,
    }
}

/// Brings the terminal where `restore` runs into the state the job expects, if it is ours to change: `restore` is in its foreground.
///
/// A group of the job's that was in the foreground is again, and so is the root's own, which nobody else would bring there. `seen`
/// gives a process's pid as we see it.
pub(crate) fn settle(
    snapshot: &Snapshot,
    terminal: Option<u32>,
    seen: &dyn Fn(u32) -> Option<i32>,
) {
    let fd = match terminal {
        Some(0) => std::io::stdin().as_fd().try_clone_to_owned(),
        Some(1) => std::io::stdout().as_fd().try_clone_to_owned(),
        Some(2) => std::io::stderr().as_fd().try_clone_to_owned(),
        _ => return,
    };
    let Ok(fd) = fd else { return };
    let Some(root) = snapshot
        .processes
        .iter()
        .find(|process| process.pid == snapshot.root)
    else {
        return;
    };
    if tcgetpgrp(&fd).ok() != Some(getpgrp()) || !root.outer_terminal {
        return;
    }
    let recorded = snapshot.files.iter().find_map(|file| match &file.kind {
        Some(Kind::Terminal(terminal)) => Some(terminal),
        _ => None,
    });
    let foreground = if root.foreground == 0 {
        root.pgid
    } else {
        root.foreground
    };
    let members = || {
        snapshot
            .processes
            .iter()
            .filter(|p| p.sid == 0 && p.pgid == foreground)
            .filter_map(|p| seen(p.pid))
    };
    if let Some(recorded) = recorded {
        if sys::ioctl_read(&fd, TCGETS, 36).is_ok_and(|now| now != recorded.termios) {
            let _ = sys::ioctl_write(&fd, TCSETS, &recorded.termios);
        }
        if size(&fd) != (recorded.rows, recorded.columns) {
            members().for_each(|pid| _ = sys::kill(pid, libc::SIGWINCH));
        }
    }
    let group = members().find_map(|pid| getpgid(Some(Pid::from_raw(pid))).ok());
    if foreground != 0
        && let Some(group) = group
    {
        let _ = tcsetpgrp(&fd, group);
    }
}

/// Rows and columns.
fn size(fd: &OwnedFd) -> (u32, u32) {
    let size = sys::ioctl_read(fd, TIOCGWINSZ, 8).unwrap_or_else(|_| vec![0; 8]);
    let half = |at: usize| u32::from(u16::from_ne_bytes([size[at], size[at + 1]]));
    (half(0), half(2))
}
