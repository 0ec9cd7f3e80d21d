//! What a client and a supervisor say to each other on the control socket: one JSON document a line.

use crate::failure::Failure;
use crate::report::Report;
use crate::take::Order;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// From the client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Request {
    /// Take a checkpoint of the job.
    Checkpoint(Order),
}

/// From the supervisor: any number of `Phase` and `Bytes`, then `Done` or `Failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    /// A phase begins.
    Phase(String),
    /// So many bytes of so many are through.
    Bytes(u64, u64),
    /// The checkpoint is on disk.
    Done(Report),
    /// It is not, and the job runs on.
    Failed(Failure),
}

/// The longest request that is read.
pub(crate) const MAX_REQUEST: usize = 64 << 10;

/// Sends one document.
pub(crate) fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Sends a request and reads replies up to the last one.
pub(crate) fn ask(
    socket: &Path,
    request: &Request,
    mut hear: impl FnMut(&Reply),
) -> io::Result<Reply> {
    let mut stream = connect(socket)?;
    send(&mut stream, request)?;
    for line in BufReader::new(stream).lines() {
        let reply = serde_json::from_str(&line?)?;
        match reply {
            Reply::Done(_) | Reply::Failed(_) => return Ok(reply),
            progress => hear(&progress),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Connects to the socket at `path`.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(short(path)?.path())
}

/// Makes the socket at `path`.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(short(path)?.path())?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A way to name a socket whose path is longer than the 107 bytes that an address holds.
struct Short {
    path: PathBuf,
    _dir: Option<std::fs::File>,
}

impl Short {
    fn path(&self) -> &Path {
        &self.path
    }
}

fn short(path: &Path) -> io::Result<Short> {
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) if path.as_os_str().len() > 107 => {
            let dir = std::fs::File::open(dir)?;
            let path = Path::new("/proc/self/fd")
                .join(dir.as_raw_fd().to_string())
                .join(name);
            Ok(Short {
                path,
                _dir: Some(dir),
            })
        }
        _ => Ok(Short {
            path: path.to_owned(),
            _dir: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_may_be_deep() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let listener = listen(&deep.join("control.sock")).unwrap();
        UnixStream::connect(short(&deep.join("control.sock")).unwrap().path()).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn replies_are_one_line_each() {
        for reply in [
            Reply::Phase("pages".into()),
            Reply::Bytes(1, 2),
            Reply::Failed(Failure::new("a\nb")),
        ] {
            let text = serde_json::to_string(&reply).unwrap();
            assert!(!text.contains('\n'));
            assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
        }
    }
}
