//! What leads out of the job: its terminal, and pipes or sockets that are its standard input, output or error.

use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{self, OpenFile, Terminal};
use remote::sys;

use super::{Held, Shell};
use crate::host::Host;
use crate::procfs;

/// The standard descriptors through which a job reaches the outside.
#[derive(Debug, Default)]
pub(crate) struct Outer {
    /// Device, inode, device number and file type of descriptors 0, 1 and 2.
    stdio: [Option<(u64, u64, u64, u32)>; 3],
    /// Further descriptors that the job has from whoever started its supervisor.
    inherited: Vec<(u32, (u64, u64, u64, u32))>,
}

fn key(meta: &std::fs::Metadata) -> (u64, u64, u64, u32) {
    (meta.dev(), meta.ino(), meta.rdev(), meta.mode() & libc::S_IFMT)
}

impl Outer {
    /// Those of a process.
    pub(crate) fn of(pid: u32) -> Self {
        let look = |fd: u32| std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok().map(|meta| key(&meta));
        let more = procfs::numbered(&format!("/proc/{pid}/fd")).into_iter().filter(|&fd| fd > 2);
        Self { stdio: [0, 1, 2].map(look), inherited: more.filter_map(|fd| Some((fd, look(fd)?))).collect() }
    }

    fn number(&self, held: &Held) -> Option<u32> {
        let position = self.stdio.iter().position(|stdio| *stdio == Some(key(&held.meta)))?;
        // The same object may be there more than once: prefer the number it has.
        let own = self.stdio.get(held.fd as usize).is_some_and(|stdio| *stdio == Some(key(&held.meta)));
        Some(if own { held.fd } else { position as u32 })
    }

    /// The terminal the job was started on.
    pub(crate) fn terminal(&self, held: &Held) -> Option<Kind> {
        const TCGETS: u64 = 0x5401;
        const TIOCGWINSZ: u64 = 0x5413;
        if held.meta.mode() & libc::S_IFMT != libc::S_IFCHR || self.number(held).is_none() {
            return None;
        }
        let termios = sys::ioctl_read(&held.file, TCGETS, 36).ok()?;
        let size = sys::ioctl_read(&held.file, TIOCGWINSZ, 8).unwrap_or_else(|_| vec![0; 8]);
        let half = |at: usize| u32::from(u16::from_ne_bytes([size[at], size[at + 1]]));
        Some(Kind::Terminal(Terminal { termios, rows: half(0), columns: half(2), path: held.link.clone() }))
    }

    /// A descriptor from outside that is neither a terminal nor a file.
    pub(crate) fn object(&self, held: &Held) -> Option<Kind> {
        let inherited = || self.inherited.iter().find(|(_, other)| *other == key(&held.meta)).map(|(fd, _)| *fd);
        let fd = self.number(held).or_else(inherited)?;
        Some(Kind::Outer(proto::Outer { fd, what: held.link.clone() }))
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
