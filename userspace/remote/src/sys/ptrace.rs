//! ptrace(2) requests, and waiting for what they lead to.

use std::ffi::c_void;
use std::io;
use std::mem::{size_of, zeroed};

use super::check;
use crate::task::Registers;

/// One ptrace request whose arguments are numbers.
pub(crate) fn request(request: u32, tid: i32, address: u64, data: u64) -> io::Result<()> {
    // SAFETY: only requests that take their arguments by value are passed here.
    check(unsafe { libc::ptrace(request, tid, address as *mut c_void, data as *mut c_void) })
        .map(|_| ())
}

/// A ptrace request that fills or reads `data`.
pub(super) fn request_with<T>(
    request: u32,
    tid: i32,
    address: u64,
    data: *mut T,
) -> io::Result<i64> {
    // SAFETY: every caller passes a live object of the type and size that the request is documented to use.
    check(unsafe { libc::ptrace(request, tid, address as *mut c_void, data.cast::<c_void>()) })
}

/// A ptrace request that fills or reads `data`, which is as long as any such request needs; its result.
pub(crate) fn fill(request: u32, tid: i32, address: u64, data: &mut [u8]) -> io::Result<usize> {
    request_with(request, tid, address, data.as_mut_ptr()).map(|n| n as usize)
}

pub(crate) fn event_message(tid: i32) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    request_with(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message)?;
    Ok(message)
}

pub(crate) fn registers(tid: i32) -> io::Result<Registers> {
    // SAFETY: user_regs_struct is plain integers.
    let mut registers: Registers = unsafe { zeroed() };
    let mut iov = libc::iovec {
        iov_base: (&raw mut registers).cast(),
        iov_len: size_of::<Registers>(),
    };
    request_with(
        libc::PTRACE_GETREGSET,
        tid,
        libc::NT_PRSTATUS as u64,
        &raw mut iov,
    )?;
    Ok(registers)
}

pub(crate) fn set_registers(tid: i32, registers: &Registers) -> io::Result<()> {
    let mut copy = *registers;
    let mut iov = libc::iovec {
        iov_base: (&raw mut copy).cast(),
        iov_len: size_of::<Registers>(),
    };
    request_with(
        libc::PTRACE_SETREGSET,
        tid,
        libc::NT_PRSTATUS as u64,
        &raw mut iov,
    )
    .map(|_| ())
}

/// Registers as bytes (`struct user_regs_struct`).
pub fn registers_to_bytes(registers: &Registers) -> Vec<u8> {
    // SAFETY: user_regs_struct is 27 u64 without padding.
    let bytes = unsafe {
        std::slice::from_raw_parts((&raw const *registers).cast::<u8>(), size_of::<Registers>())
    };
    bytes.to_vec()
}

/// The reverse of [`registers_to_bytes`]; `None` when the length is wrong.
pub fn registers_from_bytes(bytes: &[u8]) -> Option<Registers> {
    if bytes.len() != size_of::<Registers>() {
        return None;
    }
    // SAFETY: the length was checked, every bit pattern is valid, and the read is unaligned.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast::<Registers>()) })
}

pub(super) const NT_X86_XSTATE: u64 = 0x202;
/// Larger than any xsave area of today (AMX: some 11 KiB).
pub(super) const MAX_XSTATE: usize = 64 << 10;

pub(crate) fn xstate(tid: i32) -> io::Result<Vec<u8>> {
    thread_local! {
        /// Fresh memory of that size for each of many threads would take longer than the call.
        static AREA: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; MAX_XSTATE]);
    }
    AREA.with_borrow_mut(|area| {
        let mut iov = libc::iovec {
            iov_base: area.as_mut_ptr().cast(),
            iov_len: area.len(),
        };
        request_with(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, &raw mut iov)?;
        Ok(area[..iov.iov_len.min(MAX_XSTATE)].to_vec())
    })
}

pub(crate) fn set_xstate(tid: i32, area: &[u8]) -> io::Result<()> {
    let mut copy = area.to_vec();
    let mut iov = libc::iovec {
        iov_base: copy.as_mut_ptr().cast(),
        iov_len: copy.len(),
    };
    request_with(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, &raw mut iov).map(|_| ())
}

pub(crate) fn signal_mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    request_with(libc::PTRACE_GETSIGMASK, tid, 8, &raw mut mask)?;
    Ok(mask)
}

pub(crate) fn set_signal_mask(tid: i32, mask: u64) -> io::Result<()> {
    let mut mask = mask;
    request_with(libc::PTRACE_SETSIGMASK, tid, 8, &raw mut mask).map(|_| ())
}

pub(crate) fn pending_signals(tid: i32, shared: bool) -> io::Result<Vec<[u8; 128]>> {
    let mut all = Vec::new();
    loop {
        let mut some = [[0u8; 128]; 32];
        let mut args = libc::ptrace_peeksiginfo_args {
            off: all.len() as u64,
            flags: if shared {
                libc::PTRACE_PEEKSIGINFO_SHARED
            } else {
                0
            },
            nr: some.len() as i32,
        };
        let address = (&raw mut args) as u64;
        let n = request_with(libc::PTRACE_PEEKSIGINFO, tid, address, some.as_mut_ptr())? as usize;
        all.extend_from_slice(&some[..n]);
        if n < some.len() {
            return Ok(all);
        }
    }
}

pub(crate) fn signal_info(tid: i32) -> io::Result<[u8; 128]> {
    let mut info = [0u8; 128];
    request_with(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr())?;
    Ok(info)
}

pub(crate) fn set_signal_info(tid: i32, info: &[u8; 128]) -> io::Result<()> {
    let mut info = *info;
    request_with(libc::PTRACE_SETSIGINFO, tid, 0, info.as_mut_ptr()).map(|_| ())
}

/// include/uapi/linux/ptrace.h; the C library's headers may be older.
pub(super) const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;

pub(crate) fn rseq(tid: i32) -> io::Result<(u64, u32, u32, u32)> {
    #[repr(C)]
    struct Configuration {
        address: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut c = Configuration {
        address: 0,
        size: 0,
        signature: 0,
        flags: 0,
        pad: 0,
    };
    request_with(
        PTRACE_GET_RSEQ_CONFIGURATION,
        tid,
        size_of::<Configuration>() as u64,
        &raw mut c,
    )?;
    Ok((c.address, c.size, c.signature, c.flags))
}

/// What [`wait`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The wait status of a stop.
    Stopped(i32),
    Ended,
}

/// Whether one traced task has stopped or ended; `None` when nothing has happened.
///
/// The exit of our own child is left for whoever waits for children here; that of anybody else's task is passed on to its
/// real parent by reaping it as its tracer (kernel/exit.c, wait_task_zombie).
pub(crate) fn wait(tid: i32) -> io::Result<Option<Wait>> {
    loop {
        // SAFETY: siginfo_t is plain data.
        let mut info: libc::siginfo_t = unsafe { zeroed() };
        let options = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL | libc::WNOHANG;
        // SAFETY: `info` is a live siginfo_t.
        let result =
            unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, &raw mut info, options) };
        if result == -1 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::ECHILD) => return Ok(Some(Wait::Ended)),
                _ => return Err(error),
            }
        }
        // SAFETY: waitid filled the child fields, or left them zero when WNOHANG found nothing.
        if unsafe { info.si_pid() } == 0 {
            return Ok(None);
        }
        let ended = matches!(
            info.si_code,
            libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED
        );
        if ended && is_own_child(tid) {
            return Ok(Some(Wait::Ended));
        }
        let mut status = 0;
        // SAFETY: `status` is a live int.
        let got = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
        if ended {
            return Ok(Some(Wait::Ended));
        }
        if got == tid && libc::WIFSTOPPED(status) {
            return Ok(Some(Wait::Stopped(status)));
        }
        if got == tid {
            return Ok(Some(Wait::Ended));
        }
    }
}

/// Whether the task has ended and waits to be reaped.
pub(crate) fn is_zombie(tid: i32) -> bool {
    let stat = crate::sys::read_text(format!("/proc/{tid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, fields)| fields.starts_with('Z'))
}

pub(super) fn is_own_child(tid: i32) -> bool {
    let status = crate::sys::read_text(format!("/proc/{tid}/status")).unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|value| value.trim().parse::<u32>().ok())
    };
    field("PPid:") == Some(std::process::id()) && field("Tgid:") == Some(tid as u32)
}
