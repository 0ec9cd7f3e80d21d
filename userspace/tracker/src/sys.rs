//! The system calls: bpf(2), and mappings of our own. All unsafe code of this crate is here.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya_obj::generated::bpf_insn;

// include/uapi/linux/bpf.h
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_DELETE_ELEM: i32 = 3;
const BPF_PROG_LOAD: i32 = 5;
const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;
const BPF_MAP_LOOKUP_BATCH: i32 = 24;
const BPF_LINK_CREATE: i32 = 28;
const BPF_ITER_CREATE: i32 = 33;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_RAW_TP: u32 = 23;
const BPF_TRACE_FENTRY: u32 = 24;
const BPF_TRACE_ITER: u32 = 28;

/// What a tracing program is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attach {
    /// An iterator.
    Iterator,
    /// A tracepoint.
    Tracepoint,
    /// The beginning of a function of the kernel's.
    Function,
}

impl Attach {
    /// `BPF_TRACE_*`
    fn number(self) -> u32 {
        match self {
            Self::Iterator => BPF_TRACE_ITER,
            Self::Tracepoint => BPF_TRACE_RAW_TP,
            Self::Function => BPF_TRACE_FENTRY,
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

/// `BPF_MAP_CREATE`'s part.
#[repr(C)]
#[derive(Default)]
struct MapAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
    node: u32,
    name: [u8; 16],
    padding: u32,
}

/// The part of the commands on one element.
#[repr(C)]
#[derive(Default)]
struct ElementAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `BPF_MAP_LOOKUP_BATCH`'s part.
#[repr(C)]
#[derive(Default)]
struct BatchAttributes {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// `BPF_RAW_TRACEPOINT_OPEN`'s part.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    name: u64,
    program: u32,
    padding: u32,
}

/// bpf(2).
///
/// # Safety
/// `attributes` is what the command expects, and each address in it leads to memory of the size it states, for the kernel to read (or
/// write: the log, values, keys).
unsafe fn bpf<A>(command: i32, attributes: &mut A) -> io::Result<i32> {
    let attributes: *mut A = attributes;
    // SAFETY: the attributes live until the call returns, and their size is theirs; for the rest the caller vouches.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<A>()) } {
        ..0 => Err(io::Error::last_os_error()),
        answer => Ok(answer as i32),
    }
}

/// bpf(2) for the commands that give a descriptor.
///
/// # Safety
/// As for [`bpf`].
unsafe fn open<A>(command: i32, attributes: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A map of the kernel's for programs and us, with keys of four bytes and values of a fixed size.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    value_size: usize,
    max_entries: usize,
}

impl Map {
    /// Makes it. `map_type` is `BPF_MAP_TYPE_*`.
    pub(crate) fn create(map_type: u32, value_size: usize, max_entries: u32) -> io::Result<Self> {
        let mut attributes = MapAttributes {
            map_type,
            key_size: size_of::<u32>() as u32,
            value_size: value_size as u32,
            max_entries,
            ..Default::default()
        };
        // SAFETY: there are no addresses in it.
        let fd = unsafe { open(BPF_MAP_CREATE, &mut attributes) }?;
        Ok(Self {
            fd,
            value_size,
            max_entries: max_entries as usize,
        })
    }

    pub(crate) fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    fn element(&self, key: &u32, value: u64) -> ElementAttributes {
        ElementAttributes {
            map: self.fd() as u32,
            key: std::ptr::from_ref(key) as u64,
            value,
            ..Default::default()
        }
    }

    /// Adds or replaces a value.
    ///
    /// # Errors
    /// E2BIG: it is full. EINVAL: the value has another size.
    pub(crate) fn set(&self, key: u32, value: &[u8]) -> io::Result<()> {
        if value.len() != self.value_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: key and value live until the call returns, and the value has the map's size.
        unsafe {
            bpf(
                BPF_MAP_UPDATE_ELEM,
                &mut self.element(&key, value.as_ptr() as u64),
            )
        }
        .map(drop)
    }

    /// Takes a value out, if it is there.
    pub(crate) fn remove(&self, key: u32) -> io::Result<()> {
        // SAFETY: the key lives until the call returns; there is no value.
        match unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut self.element(&key, 0)) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// A value; `None` where there is none.
    pub(crate) fn get(&self, key: u32) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_size];
        let mut attributes = self.element(&key, value.as_mut_ptr() as u64);
        // SAFETY: as above, and nobody else looks at the value meanwhile.
        match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All of a hash map: `each` gets keys and values.
    pub(crate) fn each(&self, mut each: impl FnMut(u32, &[u8])) -> io::Result<()> {
        let mut keys = vec![0u32; self.max_entries];
        let mut values = vec![0u8; self.max_entries * self.value_size];
        // Where a batch goes on: kernel/bpf/hashtab.c takes the number of a bucket.
        let mut place = 0u32;
        let mut first = true;
        loop {
            let at = (&raw mut place) as u64;
            let mut attributes = BatchAttributes {
                from: if first { 0 } else { at },
                next: at,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: self.max_entries as u32,
                map: self.fd() as u32,
                ..Default::default()
            };
            first = false;
            // SAFETY: keys and values have room for `count` of them, and the place for the number of a bucket.
            let done = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) };
            let last = match done {
                Ok(_) => false,
                // It was the last one, and may have brought some.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(error),
            };
            let found = attributes.count as usize;
            for (key, value) in keys.iter().zip(values.chunks(self.value_size)).take(found) {
                each(*key, value);
            }
            if last {
                return Ok(());
            }
        }
    }
}

/// Attaches a program to what it was loaded for, until the descriptor is closed.
pub(crate) fn attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = AttachAttributes {
        program: program.as_raw_fd() as u32,
        ..Default::default()
    };
    // SAFETY: there are no addresses in it.
    unsafe { open(BPF_RAW_TRACEPOINT_OPEN, &mut attributes) }
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
    let source = match unsafe { open(BPF_PROG_LOAD, &mut attributes(&mut [])) } {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let verifier = matches!(source.raw_os_error(), Some(libc::EACCES | libc::EINVAL)).then(|| {
        let mut log = vec![0; 1 << 20];
        // SAFETY: as above, and the log is as long as the attributes say. It fails again, and says why.
        let _ = unsafe { open(BPF_PROG_LOAD, &mut attributes(&mut log)) };
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

/// Makes an iterator for one process, by its pid in our namespace, or for all of them.
pub(crate) fn link_iterator(program: BorrowedFd<'_>, pid: Option<u32>) -> io::Result<OwnedFd> {
    let info = TaskInfo {
        process: pid.unwrap_or(0),
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
    unsafe { open(BPF_LINK_CREATE, &mut attributes) }
}

/// A descriptor to read a new run of an iterator from.
pub(crate) fn open_iterator(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = OpenAttributes {
        link: link.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: there are no addresses in it.
    unsafe { open(BPF_ITER_CREATE, &mut attributes) }
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

// include/uapi/linux/landlock.h
const SYS_LANDLOCK_CREATE_RULESET: i64 = 444;
const SYS_LANDLOCK_RESTRICT_SELF: i64 = 446;
const LANDLOCK_ACCESS_FS_MAKE_SYM: u64 = 1 << 12;

/// What `look` says of a thread before and after it is confined by Landlock; the thread does nothing else, and ends. `None`: there is no
/// Landlock here.
pub(crate) fn confined<T: Send, E: Send>(
    look: impl Fn(u32) -> Result<Option<T>, E> + Sync,
) -> Result<Option<(T, T)>, E> {
    let both = || {
        // SAFETY: it takes nothing.
        let tid = unsafe { libc::gettid() }.unsigned_abs();
        let before = look(tid)?;
        if confine().is_err() {
            return Ok(None);
        }
        Ok(before.zip(look(tid)?))
    };
    std::thread::scope(|scope| {
        let end = scope.spawn(both).join();
        end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Confines this thread.
fn confine() -> io::Result<()> {
    let handled = [LANDLOCK_ACCESS_FS_MAKE_SYM];
    // SAFETY: 8 bytes of `handled` are read.
    let made = unsafe { libc::syscall(SYS_LANDLOCK_CREATE_RULESET, handled.as_ptr(), 8, 0) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    let ruleset = unsafe { OwnedFd::from_raw_fd(made as i32) };
    // SAFETY: it takes numbers.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset.as_raw_fd(), 0) == 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
