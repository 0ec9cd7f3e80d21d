//! System calls that neither `libc` nor `nix` wraps safely, as safe functions with plain results.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::LazyLock;

pub(crate) mod ptrace;
mod scheduling;
mod transfer;

pub use ptrace::{registers_from_bytes, registers_to_bytes};
pub use scheduling::{SchedAttr, affinity, idle_io, io_priority, scheduling};
pub use transfer::{read_memory, read_pieces, write_memory};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A file whose size the kernel does not tell, such as those of /proc. The standard library asks for the size and then begins with a few
/// bytes, which makes three times as many system calls.
pub fn read_file(path: impl AsRef<std::path::Path>) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut file = std::fs::File::open(path)?;
    let (mut bytes, mut length) = (vec![0; 4096], 0);
    loop {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if bytes.len() - length < 1024 {
            bytes.resize(2 * bytes.len(), 0);
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// As [`read_file`], as text; what is no UTF-8 is replaced.
pub fn read_text(path: impl AsRef<std::path::Path>) -> io::Result<String> {
    let bytes = read_file(path)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// A process by descriptor (pidfd_open(2)).
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    const PIDFD_THREAD: i32 = libc::O_EXCL;
    let open = |flags: i32| {
        // SAFETY: no pointers are passed; the result is a new descriptor that we own.
        unsafe {
            let fd = check(libc::syscall(libc::SYS_pidfd_open, pid, flags))?;
            Ok(OwnedFd::from_raw_fd(fd as i32))
        }
    };
    open(0).or_else(|error: io::Error| open(PIDFD_THREAD).map_err(|_| error))
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

/// The serial number of our session keyring (keyctl(2), `KEYCTL_GET_KEYRING_ID`).
pub fn session_keyring() -> io::Result<i32> {
    const KEYCTL_GET_KEYRING_ID: i32 = 0;
    const KEY_SPEC_SESSION_KEYRING: i32 = -3;
    // SAFETY: it takes numbers.
    let id = check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_GET_KEYRING_ID,
            KEY_SPEC_SESSION_KEYRING,
            0,
        )
    })?;
    Ok(id as i32)
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
    read_text(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
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

/// What the kernel would say to somebody with these ids, and no capabilities, who opens files to read (`R_OK`) or write (`W_OK`) them.
///
/// # Errors
/// We cannot be that somebody: no right to, or ids that mean nothing here.
pub fn may_open(
    (uid, gid, groups): (u32, u32, &[u32]),
    files: &[(&str, i32)],
) -> io::Result<Vec<io::Result<()>>> {
    const AT_EACCESS: i32 = 0x200;
    let ask = |&(path, mode): &(&str, i32)| {
        let path = std::ffi::CString::new(path)?;
        // SAFETY: the path is a NUL-terminated string that outlives the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_faccessat2,
                libc::AT_FDCWD,
                path.as_ptr(),
                mode,
                AT_EACCESS,
            )
        })
        .map(|_| ())
    };
    // Ids belong to a thread (the C library makes them the process's, so it is not asked), and end with it.
    let become_them = || {
        // SAFETY: the kernel reads as many groups as there are; the other calls take no pointers. No memory depends on ids.
        let changed = unsafe {
            check(libc::syscall(
                libc::SYS_setgroups,
                groups.len(),
                groups.as_ptr(),
            ))?;
            libc::syscall(libc::SYS_setfsgid, gid);
            // From 0 to another id, it takes away the capabilities that pass over permissions (capabilities(7)).
            libc::syscall(libc::SYS_setfsuid, uid);
            // What it was is all that they return.
            let now = |call| libc::syscall(call, u32::MAX) as u32;
            (now(libc::SYS_setfsuid), now(libc::SYS_setfsgid)) == (uid, gid)
        };
        changed
            .then_some(())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EPERM))
    };
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| become_them().map(|()| files.iter().map(ask).collect()));
        asked
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
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
    // Asked once: of a virtual machine, the hypervisor answers.
    static XCR0: LazyLock<u64> = LazyLock::new(|| {
        let osxsave = std::arch::x86_64::__cpuid(1).ecx >> 27 & 1 == 1;
        if !osxsave {
            return 0;
        }
        // SAFETY: OSXSAVE is set, so xgetbv is available to user code.
        unsafe { core_xgetbv() }
    });
    *XCR0
}

/// Where a state component lies in the xsave area (Intel SDM vol. 1, 13.4.3).
pub fn xsave_offset(component: u32) -> usize {
    std::arch::x86_64::__cpuid_count(0xd, component).ebx as usize
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

/// Inode of the parent of a user namespace, and the user who made it (ioctl_ns(2)).
///
/// # Errors
/// EPERM: the parent is outside of what we may know.
pub fn user_namespace(file: &std::fs::File) -> io::Result<(u64, u32)> {
    const NS_GET_PARENT: libc::c_ulong = 0xb702;
    const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;
    let mut owner: libc::uid_t = 0;
    // SAFETY: the first request takes no argument and gives a new descriptor that we own; the second writes an id to `owner`.
    let parent = unsafe {
        let fd = libc::ioctl(file.as_raw_fd(), NS_GET_PARENT as _);
        if fd < 0 || libc::ioctl(file.as_raw_fd(), NS_GET_OWNER_UID as _, &raw mut owner) < 0 {
            return Err(io::Error::last_os_error());
        }
        std::fs::File::from(OwnedFd::from_raw_fd(fd))
    };
    Ok((
        std::os::unix::fs::MetadataExt::ino(&parent.metadata()?),
        owner,
    ))
}

/// A time namespace of their own for those that we fork from here on (unshare(2)).
pub const CLONE_NEWTIME: i32 = 0x80;

/// Leaves namespaces of the calling thread for new ones (unshare(2)).
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: no pointers are passed, and no memory or descriptors are unshared.
    if unsafe { libc::unshare(flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
