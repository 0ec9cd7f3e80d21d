//! What keeps a stopped task from making system calls as it likes: seccomp(2) and PR_SET_SYSCALL_USER_DISPATCH.

use std::io;
use std::mem::size_of;

use crate::Stopped;
use crate::sys::ptrace;

/// The tracer's option by which seccomp(2) does nothing for as long as it traces the task. Needs CAP_SYS_ADMIN.
pub const SUSPEND_SECCOMP: i32 = 1 << 21;

// include/uapi/linux/ptrace.h
const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4210;
/// include/uapi/linux/seccomp.h
const FLAG_LOG: u64 = 2;
/// struct sock_filter
const INSTRUCTION: usize = 8;
/// BPF_MAXINSNS
const LONGEST: usize = 4096;

/// struct ptrace_sud_config: where a task's system calls are sent to itself instead.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dispatch {
    /// 1 when it is on.
    pub mode: u64,
    /// Address of the byte that says whether.
    pub selector: u64,
    /// Where code begins whose calls are let through.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

impl Stopped {
    /// The task's filters, the oldest first: instructions (`struct sock_filter`), and whether what they refuse is logged.
    ///
    /// # Errors
    /// EACCES without CAP_SYS_ADMIN, or when we are filtered ourselves.
    pub fn seccomp_filters(&self) -> io::Result<Vec<(Vec<u8>, bool)>> {
        let mut all = Vec::new();
        loop {
            // The kernel counts from the oldest (kernel/seccomp.c, get_nth_filter).
            let nth = all.len() as u64;
            let mut code = vec![0u8; LONGEST * INSTRUCTION];
            let count = match ptrace::fill(PTRACE_SECCOMP_GET_FILTER, self.tid(), nth, &mut code) {
                Ok(count) => count,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) && nth != 0 => {
                    return Ok(all);
                }
                Err(error) => return Err(error),
            };
            code.truncate(count * INSTRUCTION);
            // struct seccomp_metadata: which, and its flags.
            let mut metadata = [nth.to_ne_bytes(), [0; 8]].concat();
            let length = metadata.len() as u64;
            ptrace::fill(
                PTRACE_SECCOMP_GET_METADATA,
                self.tid(),
                length,
                &mut metadata,
            )?;
            let flags = metadata[8..]
                .first_chunk()
                .map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            all.push((code, flags & FLAG_LOG != 0));
        }
    }

    /// Where the task's system calls are sent to itself, if they are (Linux 6.4; before that nobody can say).
    pub fn dispatch(&self) -> Option<Dispatch> {
        let mut found = [0u8; size_of::<Dispatch>()];
        let length = found.len() as u64;
        let request = PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG;
        ptrace::fill(request, self.tid(), length, &mut found).ok()?;
        let mut words = found.chunks_exact(8);
        let mut next = || {
            let word = words.next().and_then(|bytes| bytes.first_chunk());
            word.map_or(0, |word| u64::from_ne_bytes(*word))
        };
        let dispatch = Dispatch {
            mode: next(),
            selector: next(),
            offset: next(),
            length: next(),
        };
        (dispatch.mode != 0).then_some(dispatch)
    }

    /// Sends its system calls to itself, or with mode 0 does not any more.
    ///
    /// # Errors
    /// EINVAL: not what prctl(2) would take.
    pub fn set_dispatch(&self, dispatch: &Dispatch) -> io::Result<()> {
        let Dispatch {
            mode,
            selector,
            offset,
            length,
        } = *dispatch;
        let words = [mode, selector, offset, length];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let size = bytes.len() as u64;
        let request = PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG;
        ptrace::fill(request, self.tid(), size, &mut bytes).map(drop)
    }
}
