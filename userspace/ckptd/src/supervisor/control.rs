//! The supervisor's end of the control socket.

use super::protocol::{self, MAX_REQUEST, Reply, Request};
use crate::failure::Failure;
use engine::Progress;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two reports of bytes.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long a client may keep us from reading its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket and those who are connected to it.
pub(crate) struct Control {
    listener: UnixListener,
    clients: Vec<Client>,
}

/// Someone who has not yet finished a request.
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Control {
    /// Listens at `path`.
    pub(crate) fn listen(path: &Path) -> Result<Self, Failure> {
        let listener = protocol::listen(path).map_err(|error| {
            Failure::because(format!("cannot listen at {}", path.display()), error)
        })?;
        Ok(Self {
            listener,
            clients: Vec::new(),
        })
    }

    /// What to poll for input.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd())
            .chain(self.clients.iter().map(|client| client.stream.as_fd()))
    }

    /// Requests that are complete, each with the way to answer it.
    pub(crate) fn requests(&mut self) -> Vec<(Request, Answer)> {
        while let Ok((stream, _)) = self.listener.accept() {
            if may_ask(&stream) && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client {
                    stream,
                    input: Vec::new(),
                });
            }
        }
        let mut complete = Vec::new();
        for mut client in std::mem::take(&mut self.clients) {
            match client.read() {
                Ok(None) => self.clients.push(client),
                Ok(Some(request)) => complete.push((request, Answer::new(client.stream))),
                Err(error) => {
                    let failure = Failure::because("cannot understand the request", error);
                    Answer::new(client.stream).finish(&Reply::Failed(failure));
                }
            }
        }
        complete
    }
}

/// The same user, or root.
fn may_ask(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials)
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw())
}

impl Client {
    /// The request, once its line is complete.
    fn read(&mut self) -> io::Result<Option<Request>> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(serde_json::from_slice(&self.input[..end])?));
            }
            if self.input.len() > MAX_REQUEST {
                return Err(io::Error::other("it is too long"));
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.input.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Progress and the result go to the client, as far as it still listens; the checkpoint never waits for it.
pub(crate) struct Answer {
    state: Mutex<(UnixStream, Option<Instant>)>,
}

impl Answer {
    fn new(stream: UnixStream) -> Self {
        Self {
            state: Mutex::new((stream, None)),
        }
    }

    /// The last word.
    pub(crate) fn finish(self, reply: &Reply) {
        let (mut stream, _) = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let sent = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .and_then(|()| protocol::send(&mut stream, reply));
        if let Err(error) = sent {
            tracing::debug!("the client does not listen any more: {error}");
        }
    }
}

impl Progress for Answer {
    fn phase(&self, name: &'static str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // The stream does not block: what does not fit is dropped.
        let _ = protocol::send(&mut state.0, &Reply::Phase(name.into()));
    }

    fn bytes(&self, done: u64, total: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if done == total || state.1.is_none_or(|last| last.elapsed() >= INTERVAL) {
            state.1 = Some(Instant::now());
            let _ = protocol::send(&mut state.0, &Reply::Bytes(done, total));
        }
    }
}
