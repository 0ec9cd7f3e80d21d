//! BPF iterators: programs that the kernel runs for each of its objects of a kind, and whose output is read like a file.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use crate::{Error, sys};

/// An iterator over what belongs to one process, or to all.
#[derive(Debug)]
pub(crate) struct TaskIterator {
    name: &'static str,
    program: OwnedFd,
}

impl TaskIterator {
    pub(crate) fn new(name: &'static str, program: OwnedFd) -> Self {
        Self { name, program }
    }

    /// Everything the program writes for a process, numbered as in our pid namespace.
    pub(crate) fn read(&self, pid: u32) -> Result<Vec<u8>, Error> {
        self.read_of(Some(pid))
    }

    /// Everything the program writes for all processes of our pid namespace.
    pub(crate) fn read_all(&self) -> Result<Vec<u8>, Error> {
        self.read_of(None)
    }

    fn read_of(&self, pid: Option<u32>) -> Result<Vec<u8>, Error> {
        let failed = |doing: &str| {
            let whose = pid.map_or_else(
                || "all processes".to_owned(),
                |pid| format!("process {pid}"),
            );
            Error::system(format!("{doing} the BPF iterator {} of {whose}", self.name))
        };
        let link = sys::link_iterator(self.program.as_fd(), pid).map_err(failed("making"))?;
        let mut file = File::from(sys::open_iterator(link.as_fd()).map_err(failed("opening"))?);
        let mut records = Vec::with_capacity(BUFFER);
        file.read_to_end(&mut records).map_err(failed("reading"))?;
        Ok(records)
    }
}

/// The kernel gives at most 8 pages a read (kernel/bpf/bpf_iter.c, `bpf_seq_read`).
const BUFFER: usize = 64 << 10;

/// Goes through records.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(records: &'a [u8]) -> Self {
        Self { rest: records }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u32::from_ne_bytes(*bytes))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u64::from_ne_bytes(*bytes))
    }

    pub(crate) fn bytes(&mut self, size: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(size)?;
        self.rest = rest;
        Some(bytes)
    }

    /// A string in `size` bytes, with a zero behind it.
    pub(crate) fn text(&mut self, size: usize) -> Option<String> {
        let bytes = self.bytes(size)?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}
