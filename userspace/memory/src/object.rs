//! Bytes of a shared memory object.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, lseek};

use crate::{Error, PAGE_SIZE, push_run};

/// A file of tmpfs or hugetlbfs that mappings share.
#[derive(Debug, Clone, Copy)]
pub struct Object<'a>(BorrowedFd<'a>);

impl<'a> Object<'a> {
    /// The object that `fd` is open on.
    #[must_use]
    pub fn new(fd: BorrowedFd<'a>) -> Self {
        Self(fd)
    }

    /// Reads the bytes of `runs`, one after the other, into `buffer`, which has exactly room for them. Beyond the end
    /// of the object they are zero.
    ///
    /// # Errors
    /// [`Error::Object`] names the offset that cannot be read.
    pub fn read(&self, runs: &[Range<u64>], buffer: &mut [u8]) -> Result<(), Error> {
        let mut rest = buffer;
        for run in runs {
            let (part, after) = rest.split_at_mut((run.end - run.start) as usize);
            let mut done = 0;
            while done < part.len() {
                let offset = run.start + done as u64;
                match pread(self.0, &mut part[done..], offset as i64) {
                    Ok(0) => break,
                    Ok(read) => done += read,
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(failed(offset, errno)),
                }
            }
            part[done..].fill(0);
            rest = after;
        }
        Ok(())
    }

    /// Writes `data` to the offsets of `runs`, one after the other. They have exactly room for it and lie inside the
    /// object.
    ///
    /// # Errors
    /// [`Error::Object`] names the offset that cannot be written.
    pub fn write(&self, runs: &[Range<u64>], data: &[u8]) -> Result<(), Error> {
        let mut rest = data;
        for run in runs {
            let (part, after) = rest.split_at((run.end - run.start) as usize);
            let mut done = 0;
            while done < part.len() {
                let offset = run.start + done as u64;
                match pwrite(self.0, &part[done..], offset as i64) {
                    Ok(0) => return Err(failed(offset, Errno::ENOSPC)),
                    Ok(written) => done += written,
                    Err(Errno::EINTR) => {}
                    // hugetlbfs has no write(2).
                    Err(Errno::EINVAL) => {
                        self.write_mapped(offset, &part[done..])
                            .map_err(|errno| failed(offset, errno))?;
                        done = part.len();
                    }
                    Err(errno) => return Err(failed(offset, errno)),
                }
            }
            rest = after;
        }
        Ok(())
    }

    /// Writes through a mapping of the whole (huge) pages around.
    fn write_mapped(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let page = (fstat(self.0)?.st_blksize as u64).max(PAGE_SIZE);
        let start = offset / page * page;
        let end = (offset + data.len() as u64).next_multiple_of(page);
        let before = (offset - start) as usize;
        let Some(length) = NonZeroUsize::new((end - start) as usize) else {
            return Ok(());
        };
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // Populated here, so that a lack of huge pages is an error and not a SIGBUS.
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping where the kernel likes; nothing else lives there.
        let mapping = unsafe { mmap(None, length, writable, flags, self.0, start as i64) }?;
        // SAFETY: `before + data.len()` is at most `length`, the mapping is writable, and no reference into it exists.
        unsafe {
            let to = mapping.cast::<u8>().as_ptr().add(before);
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
        // SAFETY: the mapping made above, used by nobody else.
        unsafe { munmap(mapping, length.get()) }
    }

    /// The runs of pages of its first `size` bytes that hold data.
    ///
    /// # Errors
    /// [`Error::Object`] names the offset that cannot be looked at.
    pub fn data(&self, size: u64) -> Result<Vec<Range<u64>>, Error> {
        let end = size.next_multiple_of(PAGE_SIZE);
        let seek = |offset: u64, whence| match lseek(self.0, offset as i64, whence) {
            Ok(found) => Ok((found as u64).min(end)),
            // No data from here to the end.
            Err(Errno::ENXIO) => Ok(end),
            Err(errno) => Err(failed(offset, errno)),
        };
        let mut runs = Vec::new();
        let mut at = 0;
        while at < end {
            let data = seek(at, Whence::SeekData)?;
            if data == end {
                break;
            }
            at = seek(data, Whence::SeekHole)?
                .next_multiple_of(PAGE_SIZE)
                .min(end);
            push_run(&mut runs, data / PAGE_SIZE * PAGE_SIZE..at);
        }
        Ok(runs)
    }
}

fn failed(offset: u64, errno: Errno) -> Error {
    Error::Object {
        offset,
        source: io::Error::from(errno),
    }
}
