//! System calls that neither `libc` nor `nix` wraps safely, as safe functions with plain results.

use std::ffi::c_void;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::task::Registers;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// One ptrace request whose arguments are numbers.
pub(crate) fn ptrace(request: u32, tid: i32, address: u64, data: u64) -> io::Result<()> {
    // SAFETY: only requests that take their arguments by value are passed here.
    check(unsafe { libc::ptrace(request, tid, address as *mut c_void, data as *mut c_void) })
        .map(|_| ())
}

/// A ptrace request that fills or reads `data`.
fn ptrace_data<T>(request: u32, tid: i32, address: u64, data: *mut T) -> io::Result<i64> {
    // SAFETY: every caller passes a live object of the type and size that the request is documented to use.
    check(unsafe { libc::ptrace(request, tid, address as *mut c_void, data.cast::<c_void>()) })
}

pub(crate) fn ptrace_event_message(tid: i32) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    ptrace_data(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message)?;
    Ok(message)
}

pub(crate) fn ptrace_registers(tid: i32) -> io::Result<Registers> {
    // SAFETY: user_regs_struct is plain integers.
    let mut registers: Registers = unsafe { zeroed() };
    let mut iov = libc::iovec {
        iov_base: (&raw mut registers).cast(),
        iov_len: size_of::<Registers>(),
    };
    ptrace_data(
        libc::PTRACE_GETREGSET,
        tid,
        libc::NT_PRSTATUS as u64,
        &raw mut iov,
    )?;
    Ok(registers)
}

pub(crate) fn ptrace_set_registers(tid: i32, registers: &Registers) -> io::Result<()> {
    let mut copy = *registers;
    let mut iov = libc::iovec {
        iov_base: (&raw mut copy).cast(),
        iov_len: size_of::<Registers>(),
    };
    ptrace_data(
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

const NT_X86_XSTATE: u64 = 0x202;
/// Larger than any xsave area of today (AMX: some 11 KiB).
const MAX_XSTATE: usize = 64 << 10;

pub(crate) fn ptrace_xstate(tid: i32) -> io::Result<Vec<u8>> {
    let mut area = vec![0u8; MAX_XSTATE];
    let mut iov = libc::iovec {
        iov_base: area.as_mut_ptr().cast(),
        iov_len: area.len(),
    };
    ptrace_data(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, &raw mut iov)?;
    area.truncate(iov.iov_len);
    Ok(area)
}

pub(crate) fn ptrace_set_xstate(tid: i32, area: &[u8]) -> io::Result<()> {
    let mut copy = area.to_vec();
    let mut iov = libc::iovec {
        iov_base: copy.as_mut_ptr().cast(),
        iov_len: copy.len(),
    };
    ptrace_data(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, &raw mut iov).map(|_| ())
}

pub(crate) fn ptrace_signal_mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    ptrace_data(libc::PTRACE_GETSIGMASK, tid, 8, &raw mut mask)?;
    Ok(mask)
}

pub(crate) fn ptrace_set_signal_mask(tid: i32, mask: u64) -> io::Result<()> {
    let mut mask = mask;
    ptrace_data(libc::PTRACE_SETSIGMASK, tid, 8, &raw mut mask).map(|_| ())
}

pub(crate) fn ptrace_pending_signals(tid: i32, shared: bool) -> io::Result<Vec<[u8; 128]>> {
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
        let n = ptrace_data(libc::PTRACE_PEEKSIGINFO, tid, address, some.as_mut_ptr())? as usize;
        all.extend_from_slice(&some[..n]);
        if n < some.len() {
            return Ok(all);
        }
    }
}

pub(crate) fn ptrace_signal_info(tid: i32) -> io::Result<[u8; 128]> {
    let mut info = [0u8; 128];
    ptrace_data(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr())?;
    Ok(info)
}

pub(crate) fn ptrace_set_signal_info(tid: i32, info: &[u8; 128]) -> io::Result<()> {
    let mut info = *info;
    ptrace_data(libc::PTRACE_SETSIGINFO, tid, 0, info.as_mut_ptr()).map(|_| ())
}

/// include/uapi/linux/ptrace.h; the C library's headers may be older.
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;

pub(crate) fn ptrace_rseq(tid: i32) -> io::Result<(u64, u32, u32, u32)> {
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
    ptrace_data(
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
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, fields)| fields.starts_with('Z'))
}

fn is_own_child(tid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|value| value.trim().parse::<u32>().ok())
    };
    field("PPid:") == Some(std::process::id()) && field("Tgid:") == Some(tid as u32)
}

/// Reads memory of another task (process_vm_readv(2)).
///
/// # Errors
/// EFAULT when not all of it is readable.
pub fn read_memory(tid: i32, address: u64, out: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < out.len() {
        let local = libc::iovec {
            iov_base: out[done..].as_mut_ptr().cast(),
            iov_len: out.len() - done,
        };
        let remote = libc::iovec {
            iov_base: (address + done as u64) as *mut c_void,
            iov_len: out.len() - done,
        };
        // SAFETY: the local vector describes the rest of `out`; the remote one is checked by the kernel.
        let n = check(unsafe {
            libc::process_vm_readv(tid, &raw const local, 1, &raw const remote, 1, 0)
        } as i64)?;
        if n == 0 {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        done += n as usize;
    }
    Ok(())
}

/// Writes pieces of memory of another task (process_vm_writev(2)).
///
/// # Errors
/// EFAULT when not all of it is writable.
pub fn write_memory(tid: i32, pieces: &[(u64, &[u8])]) -> io::Result<()> {
    // IOV_MAX is 1024.
    for pieces in pieces.chunks(512) {
        let local: Vec<_> = pieces
            .iter()
            .map(|(_, b)| libc::iovec {
                iov_base: b.as_ptr() as *mut c_void,
                iov_len: b.len(),
            })
            .collect();
        let remote: Vec<_> = pieces
            .iter()
            .map(|(a, b)| libc::iovec {
                iov_base: *a as *mut c_void,
                iov_len: b.len(),
            })
            .collect();
        let total: usize = pieces.iter().map(|(_, b)| b.len()).sum();
        // SAFETY: the local vectors describe live slices that are only read; the remote ones are checked by the kernel.
        let n = check(unsafe {
            libc::process_vm_writev(
                tid,
                local.as_ptr(),
                local.len() as u64,
                remote.as_ptr(),
                remote.len() as u64,
                0,
            )
        } as i64)?;
        if n as usize != total {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
    }
    Ok(())
}

/// A process by descriptor (pidfd_open(2)).
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed; the result is a new descriptor that we own.
    unsafe {
        Ok(OwnedFd::from_raw_fd(
            check(libc::syscall(libc::SYS_pidfd_open, pid, 0))? as i32,
        ))
    }
}

/// Our own duplicate of another process's descriptor (pidfd_getfd(2)).
pub fn pidfd_getfd(pidfd: &OwnedFd, fd: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed; the result is a new descriptor that we own.
    unsafe {
        Ok(OwnedFd::from_raw_fd(check(libc::syscall(
            libc::SYS_pidfd_getfd,
            pidfd.as_raw_fd(),
            fd,
            0,
        ))? as i32))
    }
}

/// What two tasks may share (kcmp(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// An open file description; the two numbers are descriptors.
    File = 0,
    /// The address space.
    Memory = 1,
    /// The descriptor table.
    Descriptors = 2,
    /// Root, cwd and umask.
    Fs = 3,
    /// What semop(2) with SEM_UNDO has left (`Equal` also where neither has any).
    SemaphoreUndo = 6,
}

/// Orders two tasks' objects of one kind: `Equal` means that it is the same one (kcmp(2)).
pub fn compare(a: i32, b: i32, what: Share, x: u64, y: u64) -> io::Result<std::cmp::Ordering> {
    // SAFETY: no pointers are passed.
    let result = check(unsafe { libc::syscall(libc::SYS_kcmp, a, b, what as i32, x, y) })?;
    Ok(match result {
        0 => std::cmp::Ordering::Equal,
        1 => std::cmp::Ordering::Less,
        _ => std::cmp::Ordering::Greater,
    })
}

/// Whether the `nth` registration under the number `target_fd` in `watcher`'s epoll `epoll_fd` is the open file
/// description behind `pid`'s descriptor `fd` (kcmp(2), KCMP_EPOLL_TFD).
pub fn epoll_target_is(
    pid: i32,
    fd: u32,
    watcher: i32,
    epoll_fd: u32,
    target_fd: u32,
    nth: u32,
) -> io::Result<bool> {
    const KCMP_EPOLL_TFD: i32 = 7;
    let slot = [epoll_fd, target_fd, nth];
    // SAFETY: this kind of comparison reads a struct of three u32 from the last argument.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            pid,
            watcher,
            KCMP_EPOLL_TFD,
            u64::from(fd),
            slot.as_ptr(),
        )
    })?;
    Ok(result == 0)
}

/// Head and length of a thread's robust futex list (get_robust_list(2)).
pub fn robust_list(tid: i32) -> io::Result<(u64, u64)> {
    let (mut head, mut length) = (0u64, 0u64);
    // SAFETY: both pointers are to live u64.
    check(unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            tid,
            &raw mut head,
            &raw mut length,
        )
    })?;
    Ok((head, length))
}

/// The kernel's `struct sched_attr`, first version (sched_getattr(2)).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Bytes of this structure: 48.
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// SCHED_DEADLINE: ns.
    pub runtime: u64,
    /// SCHED_DEADLINE: ns.
    pub deadline: u64,
    /// SCHED_DEADLINE: ns.
    pub period: u64,
}

impl SchedAttr {
    /// As sched_setattr(2) takes it.
    pub fn to_bytes(self) -> Vec<u8> {
        // SAFETY: the structure is 48 bytes of integers without padding.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const self).cast::<u8>(), size_of::<Self>())
        };
        bytes.to_vec()
    }
}

/// Scheduling policy and parameters of a thread.
pub fn scheduling(tid: i32) -> io::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    // SAFETY: `attr` is a live structure of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            tid,
            &raw mut attr,
            size_of::<SchedAttr>(),
            0,
        )
    })?;
    Ok(attr)
}

/// CPUs a thread may run on.
pub fn affinity(tid: i32) -> io::Result<Vec<u32>> {
    let mut mask = [0u64; 128];
    // SAFETY: `mask` is live and as large as given.
    let n = check(unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            tid,
            size_of_val(&mask),
            mask.as_mut_ptr(),
        )
    })?;
    let cpus = n as u32 * 8;
    Ok((0..cpus)
        .filter(|cpu| mask[(cpu / 64) as usize] >> (cpu % 64) & 1 == 1)
        .collect())
}

/// I/O priority of a thread (ioprio_get(2)).
pub fn io_priority(tid: i32) -> io::Result<u32> {
    // SAFETY: no pointers are passed. 1 is IOPRIO_WHO_PROCESS.
    Ok(check(unsafe { libc::syscall(libc::SYS_ioprio_get, 1, tid) })? as u32)
}

/// Gives the calling thread the idle class of I/O priority (ioprio_set(2)): it is served when nobody else wants the disk.
pub fn idle_io() -> io::Result<()> {
    const IDLE: i32 = 3 << 13;
    // SAFETY: no pointers are passed. 1 is IOPRIO_WHO_PROCESS, 0 the calling thread.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, IDLE) })?;
    Ok(())
}

/// Bytes in a pipe, socket or terminal (FIONREAD).
pub fn bytes_waiting(fd: &OwnedFd) -> io::Result<usize> {
    let mut n: i32 = 0;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut n) } as i64)?;
    Ok(n.max(0) as usize)
}

/// Copies up to `limit` bytes that are in one pipe into another without taking them out (tee(2)).
pub fn tee(from: &OwnedFd, to: &OwnedFd, limit: usize) -> io::Result<usize> {
    // SAFETY: no pointers are passed.
    let n = unsafe {
        libc::tee(
            from.as_raw_fd(),
            to.as_raw_fd(),
            limit,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    check(n as i64).map(|n| n as usize)
}

/// Period and time left of a timerfd, in nanoseconds (timerfd_gettime(2)).
pub fn timerfd_time(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    // SAFETY: itimerspec is plain integers.
    let mut time: libc::itimerspec = unsafe { zeroed() };
    // SAFETY: `time` is a live itimerspec for the kernel to fill.
    check(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut time) } as i64)?;
    let nanoseconds = |t: libc::timespec| t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64;
    Ok((nanoseconds(time.it_interval), nanoseconds(time.it_value)))
}

/// /proc/self/fdinfo of a descriptor.
pub fn fdinfo(fd: &impl AsRawFd) -> io::Result<String> {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
}

/// Where a descriptor of ours leads.
pub fn path_of(fd: &impl AsRawFd) -> io::Result<String> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(path.to_string_lossy().into_owned())
}

/// What a file handle stands for, opened with O_PATH (open_by_handle_at(2)); `mount` is anything open on its file system.
pub fn open_by_handle(mount: &impl AsRawFd, kind: i32, handle: &[u8]) -> io::Result<OwnedFd> {
    // struct file_handle: length, type, bytes.
    let mut record = (handle.len() as u32).to_ne_bytes().to_vec();
    record.extend(kind.to_ne_bytes());
    record.extend(handle);
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the record says its own length; the result is a new descriptor that we own.
    unsafe {
        let fd = check(libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            record.as_mut_ptr(),
            flags,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// fcntl(2) with a numeric argument.
pub fn fcntl(fd: &impl AsRawFd, command: i32, argument: i64) -> io::Result<i64> {
    // SAFETY: callers pass commands whose argument is a number.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) } as i64)
}

/// Owner of a descriptor's signals (F_GETOWN_EX): type (F_OWNER_*) and id.
pub fn owner(fd: &OwnedFd) -> io::Result<(i32, i32)> {
    let mut owner = [0i32; 2];
    // SAFETY: F_GETOWN_EX (16) fills struct f_owner_ex, two ints.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), 16, owner.as_mut_ptr()) } as i64)?;
    Ok((owner[0], owner[1]))
}

/// An ioctl that fills a structure of `length` bytes.
pub fn ioctl_read(fd: &OwnedFd, request: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut out = vec![0u8; length.max(256)];
    // SAFETY: the buffer is at least as long as any structure the terminal ioctls used here fill.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, out.as_mut_ptr()) } as i64)?;
    out.truncate(length);
    Ok(out)
}

/// An ioctl that reads a structure.
pub fn ioctl_write(fd: &OwnedFd, request: u64, data: &[u8]) -> io::Result<()> {
    let mut copy = data.to_vec();
    copy.resize(copy.len().max(256), 0);
    // SAFETY: the buffer is at least as long as any structure the terminal ioctls used here read.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, copy.as_ptr()) } as i64).map(|_| ())
}

/// Sends a signal to one process.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::kill(pid, signal) } as i64).map(|_| ())
}

/// Sends a signal to one thread.
pub fn tgkill(pid: i32, tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(|_| ())
}

/// Our own thread's id, which may be what /proc shows as `TracerPid` of the tasks we trace.
pub fn gettid() -> i32 {
    // SAFETY: no pointers are passed.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

/// XCR0: the state components user code may use (Intel SDM vol. 1, 13.3); 0 where the CPU has no xsave.
pub fn xcr0() -> u64 {
    let osxsave = std::arch::x86_64::__cpuid(1).ecx >> 27 & 1 == 1;
    if !osxsave {
        return 0;
    }
    // SAFETY: OSXSAVE is set, so xgetbv is available to user code.
    unsafe { core_xgetbv() }
}

#[target_feature(enable = "xsave")]
unsafe fn core_xgetbv() -> u64 {
    // SAFETY: the caller has checked OSXSAVE.
    unsafe { std::arch::x86_64::_xgetbv(0) }
}

/// CLOCK_* now, in nanoseconds.
pub fn clock(id: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a live timespec.
    unsafe { libc::clock_gettime(id, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The resolution of a clock, in nanoseconds (clock_getres(2)).
pub fn clock_resolution(id: libc::clockid_t) -> u64 {
    let mut resolution = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `resolution` is a live timespec.
    unsafe { libc::clock_getres(id, &raw mut resolution) };
    resolution.tv_sec as u64 * 1_000_000_000 + resolution.tv_nsec as u64
}

/// Our own securebits (capabilities(7)).
pub fn securebits() -> u32 {
    // SAFETY: PR_GET_SECUREBITS takes no pointers.
    unsafe { libc::prctl(libc::PR_GET_SECUREBITS).max(0) as u32 }
}

/// Whether SIGPIPE was ignored when this program was executed. Rust's runtime ignores it before `main`, so it is too late to ask
/// then; a program that is started on somebody's behalf has to get what they had set.
pub fn sigpipe_was_ignored() -> bool {
    SIGPIPE_IGNORED.load(std::sync::atomic::Ordering::Relaxed)
}

static SIGPIPE_IGNORED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

extern "C" fn note_sigpipe() {
    // SAFETY: `old` is a live sigaction for the kernel to fill; nothing is changed.
    let ignored = unsafe {
        let mut old: libc::sigaction = zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut old) == 0
            && old.sa_sigaction == libc::SIG_IGN
    };
    SIGPIPE_IGNORED.store(ignored, std::sync::atomic::Ordering::Relaxed);
}

// SAFETY: the C library calls what is in this section before `main`; the function uses nothing that needs Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_SIGPIPE: extern "C" fn() = note_sigpipe;
