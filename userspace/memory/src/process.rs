//! Bytes of a process.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use crate::Error;

/// Most ranges that one system call takes: `UIO_MAXIOV`.
const MAX_RANGES: usize = 1024;

/// The memory of a process.
///
/// It is read and written with `process_vm_readv(2)` and its twin, which are fast and keep to the mappings' own
/// protection; what they may not touch (a `PROT_NONE` mapping with content) goes through `/proc/PID/mem`, which passes
/// over it. There, kernels with `proc_mem.force_override=ptrace` obey the task's tracer only.
pub struct ProcessMemory {
    pid: u32,
    /// See [`ProcessMemory::of_running`].
    runs: bool,
    /// `/proc/PID/mem`, opened when first needed.
    forced: OnceLock<File>,
}

impl ProcessMemory {
    /// The memory of process `pid`, which is stopped.
    #[must_use]
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            runs: false,
            forced: OnceLock::new(),
        }
    }

    /// That of one that runs, in which what is to be read may be gone. `/proc/PID/mem` is left alone: who reads there below a stack
    /// makes it grow (mm/memory.c, `__access_remote_vm`).
    pub(crate) fn of_running(pid: u32) -> Self {
        Self {
            runs: true,
            ..Self::new(pid)
        }
    }

    /// Reads the bytes of `runs`, one after the other, into `buffer`, which has exactly room for them.
    ///
    /// # Errors
    /// [`Error::Read`] names the first address that cannot be read.
    pub fn read(&self, runs: &[Range<u64>], buffer: &mut [u8]) -> Result<(), Error> {
        let pid = Pid::from_raw(self.pid as i32);
        let mut left = Left::new(runs, buffer.len());
        while let Some((address, length)) = left.next_range() {
            let rest = &mut buffer[left.done..];
            let moved = match process_vm_readv(pid, &mut [IoSliceMut::new(rest)], &left.ranges()) {
                Ok(0) | Err(Errno::EFAULT) if !self.runs => self
                    .forced()
                    .and_then(|mem| mem.read_at(&mut rest[..length], address)),
                other => other.map_err(io::Error::from),
            };
            left.advance(self.moved(moved, |source| Error::Read {
                pid: self.pid,
                address,
                source,
            })?);
        }
        Ok(())
    }

    /// Writes `data` to the addresses of `runs`, one after the other. They have exactly room for it.
    ///
    /// # Errors
    /// [`Error::Write`] names the first address that cannot be written.
    pub fn write(&self, runs: &[Range<u64>], data: &[u8]) -> Result<(), Error> {
        let pid = Pid::from_raw(self.pid as i32);
        let mut left = Left::new(runs, data.len());
        while let Some((address, length)) = left.next_range() {
            let rest = &data[left.done..];
            let moved = match process_vm_writev(pid, &[IoSlice::new(rest)], &left.ranges()) {
                Ok(0) | Err(Errno::EFAULT) => self
                    .forced()
                    .and_then(|mem| mem.write_at(&rest[..length], address)),
                other => other.map_err(io::Error::from),
            };
            left.advance(self.moved(moved, |source| Error::Write {
                pid: self.pid,
                address,
                source,
            })?);
        }
        Ok(())
    }

    fn forced(&self) -> io::Result<&File> {
        if let Some(mem) = self.forced.get() {
            return Ok(mem);
        }
        let mem = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/mem", self.pid))?;
        Ok(self.forced.get_or_init(|| mem))
    }

    /// A count of bytes, of which none is a failure.
    fn moved(
        &self,
        result: io::Result<usize>,
        failed: impl FnOnce(io::Error) -> Error,
    ) -> Result<usize, Error> {
        match result {
            // The memory of a process that has ended reads as an empty file.
            Ok(0) => Err(Error::Gone { pid: self.pid }),
            Ok(bytes) => Ok(bytes),
            Err(source) if matches!(source.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => {
                Err(Error::Gone { pid: self.pid })
            }
            Err(source) => Err(failed(source)),
        }
    }
}

/// What of some runs is still to be read or written.
struct Left<'a> {
    runs: &'a [Range<u64>],
    /// Bytes of the first run that are done.
    within: u64,
    /// Bytes that are done in all.
    done: usize,
}

impl<'a> Left<'a> {
    fn new(runs: &'a [Range<u64>], bytes: usize) -> Self {
        debug_assert_eq!(
            runs.iter().map(|run| run.end - run.start).sum::<u64>(),
            bytes as u64
        );
        Self {
            runs,
            within: 0,
            done: 0,
        }
    }

    /// The next address and how many bytes lie there together.
    fn next_range(&self) -> Option<(u64, usize)> {
        let run = self.runs.first()?;
        let address = run.start + self.within;
        Some((address, (run.end - address) as usize))
    }

    fn ranges(&self) -> Vec<RemoteIoVec> {
        let mut ranges: Vec<_> = (self.runs.iter().take(MAX_RANGES))
            .map(|run| RemoteIoVec {
                base: run.start as usize,
                len: (run.end - run.start) as usize,
            })
            .collect();
        if let Some(first) = ranges.first_mut() {
            first.base += self.within as usize;
            first.len -= self.within as usize;
        }
        ranges
    }

    fn advance(&mut self, bytes: usize) {
        self.done += bytes;
        self.within += bytes as u64;
        while let Some(run) = self.runs.first() {
            let length = run.end - run.start;
            if self.within < length {
                break;
            }
            self.within -= length;
            self.runs = &self.runs[1..];
        }
    }
}
