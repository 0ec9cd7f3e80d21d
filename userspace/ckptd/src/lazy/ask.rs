//! What a supervisor that watches its job's writes asks of the page server, on the socket `lazy/server.sock`: one JSON document a line,
//! one question a connection.

use super::folder;
use crate::supervisor::protocol;
use engine::Image;
use memory::serve::Server;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Question {
    /// What is missing?
    Missing,
    /// Every page is in, and nothing is watched for missing pages any more: the server may end.
    Release,
}

/// What is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Missing {
    /// Nothing.
    pub whole: bool,
    /// The address spaces that are still there.
    pub spaces: Vec<Space>,
}

/// What is missing of one address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Space {
    /// Its number in the vault.
    pub number: u32,
    /// Addresses where whatever is missing is as it was at the checkpoint.
    pub in_place: Vec<Range<u64>>,
    /// Something that is missing belongs elsewhere.
    pub elsewhere: bool,
    /// Addresses to which memory was moved.
    pub arrived: Vec<Range<u64>>,
}

/// The server's end.
pub(crate) struct Desk(Arc<(Mutex<bool>, Condvar)>);

impl Desk {
    /// Answers from now on.
    pub(crate) fn open(entry: &Path, server: Arc<Server<Image>>) -> io::Result<Self> {
        let path = socket(entry);
        // Of a server that was killed.
        let _ = std::fs::remove_file(&path);
        let listener = protocol::listen(&path)?;
        listener.set_nonblocking(false)?;
        let released = Arc::new((Mutex::new(false), Condvar::new()));
        let desk = Self(Arc::clone(&released));
        std::thread::Builder::new()
            .name("desk".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    match answer(stream, &server) {
                        Ok(Question::Missing) => {}
                        Ok(Question::Release) => {
                            let mut released =
                                released.0.lock().unwrap_or_else(PoisonError::into_inner);
                            *released = true;
                        }
                        Err(error) => tracing::debug!("cannot answer the supervisor: {error}"),
                    }
                    released.1.notify_all();
                }
            })?;
        Ok(desk)
    }

    /// Whether the supervisor has said that all is done; waits for it for a while.
    pub(crate) fn is_released(&self, at_most: Duration) -> bool {
        let released = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .0
            .1
            .wait_timeout_while(released, at_most, |released| !*released);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn answer(mut stream: UnixStream, server: &Server<Image>) -> io::Result<Question> {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let question = serde_json::from_str(&line)?;
    // In this order: whatever comes in between is in.
    let spaces = server.missing();
    let whole = server.wait(Duration::ZERO);
    let spaces = spaces.into_iter().map(|space| Space {
        number: space.number,
        in_place: space.in_place,
        elsewhere: space.elsewhere,
        arrived: space.arrived,
    });
    let missing = Missing {
        whole,
        spaces: spaces.collect(),
    };
    protocol::send(&mut stream, &missing)?;
    Ok(question)
}

fn socket(entry: &Path) -> std::path::PathBuf {
    folder(entry).join("server.sock")
}

/// The supervisor's end: asks what is missing.
pub(super) fn missing(entry: &Path) -> io::Result<Missing> {
    ask(entry, Question::Missing)
}

/// Says that the server may end.
pub(super) fn release(entry: &Path) -> io::Result<()> {
    ask(entry, Question::Release).map(drop)
}

fn ask(entry: &Path, question: Question) -> io::Result<Missing> {
    let mut stream = protocol::connect(&socket(entry))?;
    protocol::send(&mut stream, &question)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
