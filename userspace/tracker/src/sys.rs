//! The system calls: bpf(2), and mappings of our own. All unsafe code of this crate is here.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya_obj::generated::bpf_insn;

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: i32 = 5;
const BPF_LINK_CREATE: i32 = 28;
const BPF_ITER_CREATE: i32 = 33;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_ITER: u32 = 28;

/// What a tracing program is attached to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Attach {
    /// An iterator.
    Iterator,
}

impl Attach {
    /// `BPF_TRACE_*`
    fn number(self) -> u32 {
        match self {
            Self::Iterator => BPF_TRACE_ITER,
        }
    }
}

/// A program for the kernel.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    pub(crate) name: &'a str,
    pub(crate) instructions: &'a [bpf_insn],
    pub(crate) license: &'a CStr,
    pub(crate) attach: Attach,
    /// The BTF id of what it is attached to.
    pub(crate) target: u32,
}

/// Why the kernel did not take a program.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) source: io::Error,
    /// The end of what the verifier says, if it was the verifier.
    pub(crate) verifier: Option<String>,
}

/// `BPF_PROG_LOAD`'s part of union `bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct ProgramAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    btf: u32,
    function_info_size: u32,
    function_info: u64,
    function_info_count: u32,
    line_info_size: u32,
    line_info: u64,
    line_info_count: u32,
    attach_btf_id: u32,
    attach_object: u32,
    padding: u32,
}

/// `BPF_LINK_CREATE`'s part, for iterators.
#[repr(C)]
#[derive(Default)]
struct LinkAttributes {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    iterator_info: u64,
    iterator_info_size: u32,
    padding: u32,
}

/// `BPF_ITER_CREATE`'s part.
#[repr(C)]
struct OpenAttributes {
    link: u32,
    flags: u32,
}

/// union `bpf_iter_link_info`, for tasks (Linux 6.1).
#[repr(C)]
#[derive(Default)]
struct TaskInfo {
    thread: u32,
    process: u32,
    pidfd: u32,
    padding: u32,
}

/// bpf(2) for the commands that give a descriptor.
///
/// # Safety
/// `attributes` is what the command expects, and each address in it leads to memory of the size it states, for the kernel to read (or
/// write: the log).
unsafe fn bpf<A>(command: i32, attributes: &mut A) -> io::Result<OwnedFd> {
    let attributes: *mut A = attributes;
    // SAFETY: the attributes live until the call returns, and their size is theirs; for the rest the caller vouches.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<A>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Loads a tracing program.
pub(crate) fn load(load: &Load<'_>) -> Result<OwnedFd, Refused> {
    let mut name = [0; 16];
    // The last byte stays zero.
    for (to, from) in name[..15].iter_mut().zip(load.name.bytes()) {
        *to = from;
    }
    let attributes = |log: &mut [u8]| ProgramAttributes {
        program_type: BPF_PROG_TYPE_TRACING,
        instruction_count: load.instructions.len() as u32,
        instructions: load.instructions.as_ptr() as u64,
        license: load.license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log: if log.is_empty() {
            0
        } else {
            log.as_mut_ptr() as u64
        },
        name,
        expected_attach_type: load.attach.number(),
        attach_btf_id: load.target,
        ..Default::default()
    };
    // SAFETY: instructions and license live in `load`; there is no log.
    let source = match unsafe { bpf(BPF_PROG_LOAD, &mut attributes(&mut [])) } {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let verifier = matches!(source.raw_os_error(), Some(libc::EACCES | libc::EINVAL)).then(|| {
        let mut log = vec![0; 1 << 20];
        // SAFETY: as above, and the log is as long as the attributes say. It fails again, and says why.
        let _ = unsafe { bpf(BPF_PROG_LOAD, &mut attributes(&mut log)) };
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&log[..end]).into_owned();
        let last: Vec<&str> = text.lines().rev().take(4).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("; ")
    });
    Err(Refused {
        source,
        verifier: verifier.filter(|log| !log.is_empty()),
    })
}

/// Makes an iterator for one process, by its pid in our namespace.
pub(crate) fn link_iterator(program: BorrowedFd<'_>, pid: u32) -> io::Result<OwnedFd> {
    let info = TaskInfo {
        process: pid,
        ..Default::default()
    };
    let mut attributes = LinkAttributes {
        program: program.as_raw_fd() as u32,
        attach_type: BPF_TRACE_ITER,
        iterator_info: (&raw const info) as u64,
        iterator_info_size: size_of::<TaskInfo>() as u32,
        ..Default::default()
    };
    // SAFETY: `info` outlives the call and has the size stated.
    unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }
}

/// A descriptor to read a new run of an iterator from.
pub(crate) fn open_iterator(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = OpenAttributes {
        link: link.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: there are no addresses in it.
    unsafe { bpf(BPF_ITER_CREATE, &mut attributes) }
}

/// Memory that nobody uses, mapped while this lives.
#[derive(Debug)]
pub(crate) struct Area {
    start: *mut libc::c_void,
    length: usize,
}

impl Area {
    /// mmap(2) at an address of the kernel's choice, without a file.
    pub(crate) fn map(length: usize, prot: i32, flags: i32) -> io::Result<Self> {
        // SAFETY: without MAP_FIXED nothing of ours is replaced.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, prot, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start, length })
    }

    pub(crate) fn advise(&self, advice: i32) -> io::Result<()> {
        // SAFETY: the memory is ours and nothing is in it.
        let done = unsafe { libc::madvise(self.start, self.length, advice) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// mlock2(2)
    pub(crate) fn lock(&self, flags: u32) -> io::Result<()> {
        // SAFETY: as above.
        let done = unsafe { libc::syscall(libc::SYS_mlock2, self.start, self.length, flags) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Registers an area for write protection with a userfaultfd, which is given back.
pub(crate) fn watch(area: &Area) -> io::Result<OwnedFd> {
    // include/uapi/linux/userfaultfd.h
    const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
    const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00;
    const API: u64 = 0xaa;
    const MODE_WP: u64 = 2;
    // SAFETY: takes flags, gives a descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just made, which nobody else knows.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let range = [area.start as u64, area.length as u64, MODE_WP, 0];
    for (request, mut argument) in [(UFFDIO_API, [API, 0, 0, 0]), (UFFDIO_REGISTER, range)] {
        // SAFETY: the requests take structures of three and four words; the area is ours and has no page that could be protected.
        if unsafe { libc::ioctl(fd.as_raw_fd(), request, argument.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(fd)
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: it was mapped by us, and no reference into it was ever made.
        unsafe { libc::munmap(self.start, self.length) };
    }
}
