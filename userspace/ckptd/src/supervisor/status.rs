//! How the init of a job's own pid namespace tells the supervisor what becomes of the root.
//!
//! The init is the root's parent, so only it can wait for it. It writes lines to a FIFO in the run directory:
//! `exited N`, `killed N`, `stopped N`, `continued`.

use super::ended::Ended;
use crate::failure::Failure;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What happened to the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// It ended.
    Ended(Ended),
    /// It was stopped by this signal.
    Stopped(i32),
    /// It goes on.
    Continued,
}

impl News {
    /// As it is written to the FIFO, without the line feed.
    pub(crate) fn line(self) -> String {
        match self {
            Self::Ended(ended) => ended.to_string(),
            Self::Stopped(signal) => format!("stopped {signal}"),
            Self::Continued => "continued".to_owned(),
        }
    }

    /// What a line says.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (word, number) = line.split_once(' ').unwrap_or((line, ""));
        let number = number.parse();
        match word {
            "exited" => Some(Self::Ended(Ended::Exited(number.ok()?))),
            "killed" => Some(Self::Ended(Ended::Killed(number.ok()?))),
            "stopped" => Some(Self::Stopped(number.ok()?)),
            "continued" => Some(Self::Continued),
            _ => None,
        }
    }
}

/// The supervisor's end of the FIFO.
#[derive(Debug)]
pub(crate) struct Fifo {
    file: File,
    input: Vec<u8>,
}

impl Fifo {
    /// Makes it. It is open for writing too, so that it never reads as ended.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let make = || {
            nix::unistd::mkfifo(
                path,
                nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR,
            )?;
            open(path)
        };
        let file = make()
            .map_err(|error| Failure::because(format!("cannot make {}", path.display()), error))?;
        Ok(Self {
            file,
            input: Vec::new(),
        })
    }

    /// What has come in since.
    pub(crate) fn news(&mut self) -> Vec<News> {
        let mut chunk = [0; 512];
        while let Ok(length @ 1..) = self.file.read(&mut chunk) {
            self.input.extend_from_slice(&chunk[..length]);
        }
        let complete = self
            .input
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.input.drain(..complete).collect();
        String::from_utf8_lossy(&lines)
            .lines()
            .filter_map(News::parse)
            .collect()
    }
}

impl AsFd for Fifo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens a FIFO both ways, so that neither opening nor writing ever waits for somebody at the other end.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn news_survive_the_fifo() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status");
        let mut fifo = Fifo::create(&path).unwrap();
        let sent = [
            News::Stopped(20),
            News::Continued,
            News::Ended(Ended::Killed(34)),
            News::Ended(Ended::Exited(3)),
        ];
        let mut init = open(&path).unwrap();
        for news in sent {
            init.write_all(format!("{}\n", news.line()).as_bytes())
                .unwrap();
        }
        init.write_all(b"exit").unwrap();
        assert_eq!(fifo.news(), sent);
        assert_eq!(fifo.news(), []);
        assert_eq!(News::parse("exited x"), None);
    }
}
