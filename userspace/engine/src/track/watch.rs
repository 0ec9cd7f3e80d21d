//! How a running process comes to be watched.

use std::os::fd::OwnedFd;

use memory::track::{FEATURES, WriteProtect, WriteTracker};
use memory::{SoftDirty, Tracking as Method, uffd};
use remote::{Program, sys};

use crate::CheckpointError;
use crate::capture::lend;
use crate::freeze::{Frozen, failed};
use crate::procfs::{self, Status};

/// Watches a running process.
pub(super) fn watch(pid: u32) -> Result<Box<dyn WriteTracker>, CheckpointError> {
    Ok(match by_userfaultfd() {
        true => Box::new(WriteProtect::new(pid, take_userfaultfd(pid)?)),
        false => Box::new(SoftDirty::new(pid)),
    })
}

/// Whether processes are watched through userfaultfds of theirs.
#[must_use]
pub fn by_userfaultfd() -> bool {
    *memory::tracking() == Method::WriteProtect
}

/// Gives a running process a userfaultfd for write tracking, and takes it out of its descriptors again. Only its leader stops
/// for it, for about a millisecond.
fn take_userfaultfd(pid: u32) -> Result<OwnedFd, CheckpointError> {
    let status = Status::read(pid).map_err(failed(format!("reading /proc/{pid}/status")))?;
    if status.state() == 'Z' {
        return Err(CheckpointError::Gone { pid });
    }
    let mut frozen = Frozen::leader(pid)?;
    let process = (frozen.processes.get_mut(&pid)).ok_or(CheckpointError::Gone { pid })?;
    let frame = lend(process, &status)?
        .first()
        .map_or(0, |lending| lending.slot.frame);
    // As rt_sigreturn, should it come to that, sets the alternate stack that is in the frame.
    let mut keep = Program::new();
    keep.must(
        libc::SYS_sigaltstack,
        &[0.into(), (frame + remote::live::FRAME_ALTSTACK).into()],
        "keep the alternate stack",
    );
    frozen.run(pid, &keep)?;
    let (program, made) = userfaultfd();
    let fd = frozen.run(pid, &program)?.results[made] as u32;
    let pidfd = sys::pidfd_open(pid as i32).map_err(failed(format!("opening process {pid}")))?;
    let taken = sys::pidfd_getfd(&pidfd, fd);
    let mut program = Program::new();
    program.must(libc::SYS_close, &[fd.into()], "close the userfaultfd");
    frozen.run(pid, &program)?;
    taken.map_err(failed(format!("taking the userfaultfd of process {pid}")))
}

/// Makes a userfaultfd for write tracking; and which of the calls gives it.
pub(crate) fn userfaultfd() -> (Program, usize) {
    let mut program = Program::new();
    // Which needs no right of the process: no fault of the kernel's ever waits for it, as written pages lose their protection by themselves.
    let flags = (uffd::FLAGS | uffd::USER_MODE_ONLY).into();
    let made = program.must(libc::SYS_userfaultfd, &[flags], "make a userfaultfd");
    let api = program.words(&[uffd::API, FEATURES, 0]);
    program.must(
        libc::SYS_ioctl,
        &[
            remote::Arg::Result(made),
            uffd::UFFDIO_API.into(),
            api.into(),
        ],
        "agree on its features",
    );
    (program, made)
}

/// Whether a descriptor of the process is open for direct I/O: then a device may be writing to pages that were pinned
/// before they were write-protected, which leaves no trace, and what is copied while that goes on is not to be trusted. Once the
/// process is stopped, no read(2) is under way.
pub(super) fn writes_directly(pid: u32) -> bool {
    procfs::numbered(&format!("/proc/{pid}/fd"))
        .into_iter()
        .filter(|fd| may_be_direct(pid, *fd))
        .any(|fd| {
            let info = sys::read_text(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
            flags.unwrap_or(0) & libc::O_DIRECT != 0
        })
}

/// Only files have names that are paths; of pipes the flag means something else, and nothing else has it.
fn may_be_direct(pid: u32, fd: u32) -> bool {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}"));
    link.is_ok_and(|link| link.is_absolute())
}
