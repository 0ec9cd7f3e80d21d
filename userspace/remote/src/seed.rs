//! A new process with an almost empty address space, ready to become any task.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::stub::{self, RunError, Slot};
use crate::task::{FOLLOW, Running, Stop, Stopped, Waited};

/// Load address of the seed's only page, a single `syscall` instruction.
const LOAD: u64 = 0x1_0000;
const CODE_OFFSET: u64 = 64 + 56 + 56;

/// An ELF executable (elf(5)) of one read-only executable segment and a non-executable stack.
fn image() -> Vec<u8> {
    let code = [0x0f, 0x05, 0xf4]; // syscall; hlt
    let size = CODE_OFFSET + code.len() as u64;
    let mut elf = Vec::new();
    elf.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for word in [LOAD + CODE_OFFSET, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, flags: u32, words: [u64; 6]| {
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        elf.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    segment(1, 5, [0, LOAD, LOAD, size, size, 4096]); // PT_LOAD, R+X
    segment(0x6474_e551, 6, [0, 0, 0, 0, 0, 16]); // PT_GNU_STACK, RW
    elf.extend(code);
    elf
}

/// How a seed is born.
#[derive(Debug, Clone, Default)]
pub struct Birth {
    /// Ids the process is to have, from its innermost pid namespace outwards (clone3(2), `set_tid`); empty: any.
    pub ids: Vec<i32>,
    /// New namespaces it is in (CLONE_NEW*); 0: those of ours.
    pub namespaces: i32,
    /// Files of /proc/PID, and what is written there before it becomes a seed.
    pub maps: Vec<(&'static str, String)>,
    /// Standard input, output and error are kept; everything else is closed.
    pub keep_stdio: bool,
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a seed, a child of ours, stopped at its first instruction. It dies with us until it is let go.
///
/// # Errors
/// EEXIST: an id is taken; EPERM: no right to choose ids or make namespaces.
pub fn spawn(birth: &Birth) -> io::Result<Stopped> {
    let program = memfd(&image())?;
    let (read, write) = pipe()?;
    let name = CString::new("ckptd-seed").unwrap_or_default();
    let empty = CString::default();
    let argv = [name.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    let mut args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        ..Default::default()
    };
    args.flags = birth.namespaces as u64;
    if !birth.ids.is_empty() {
        args.set_tid = birth.ids.as_ptr() as u64;
        args.set_tid_size = birth.ids.len() as u64;
    }
    // SAFETY: `args` is a live clone_args of the size given. Without CLONE_VM the child has its own copy of everything; until
    // execveat it makes only system calls, so that locks other threads may have held at the fork do not matter.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if pid == 0 {
        // SAFETY: as above; the arrays outlive the calls, and _exit does not return.
        unsafe {
            for signal in 1..=64 {
                let default = [0u64; 4];
                libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, 8);
            }
            let none = 0u64;
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const none,
                0,
                8,
            );
            if !birth.keep_stdio {
                libc::syscall(libc::SYS_close_range, 0, 2, 4);
            }
            // Everything else closes at the exec (CLOSE_RANGE_CLOEXEC).
            libc::syscall(libc::SYS_close_range, 3, u32::MAX, 4);
            libc::syscall(libc::SYS_personality, libc::ADDR_NO_RANDOMIZE);
            let mut go = 0u8;
            libc::syscall(libc::SYS_read, read.as_raw_fd(), &raw mut go, 1);
            libc::syscall(
                libc::SYS_execveat,
                program.as_raw_fd(),
                empty.as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
            libc::_exit(127);
        }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let running = Running::seize(pid as i32, FOLLOW | libc::PTRACE_O_EXITKILL)?;
    for (file, text) in &birth.maps {
        std::fs::write(format!("/proc/{pid}/{file}"), text)?;
    }
    // SAFETY: one byte of a live buffer is written.
    unsafe { libc::write(write.as_raw_fd(), [1u8].as_ptr().cast(), 1) };
    let mut running = running;
    loop {
        match running.wait()? {
            Waited::Stopped(task) if task.stop() == Stop::Event(libc::PTRACE_EVENT_EXEC) => {
                // Still inside execve: registers count only once that has returned.
                return crate::live::interrupt_stop(task, 0).map_err(io::Error::other);
            }
            Waited::Stopped(task) => running = task.resume(0)?,
            Waited::Gone => return Err(io::Error::other("a new process ended before it began")),
        }
    }
}

/// Gives a fresh seed the stub at `base`: code in the first page, `length - 4096` bytes of data behind it.
pub fn equip(
    task: Stopped,
    base: u64,
    length: usize,
    ids: (i32, i32),
) -> Result<(Stopped, Slot), RunError> {
    let tid = task.tid();
    let fail = |doing| move |source| RunError::System { tid, doing, source };
    let prot = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
    let args = [base, length as u64, prot, flags, u64::MAX, 0];
    let task = call_at(task, LOAD + CODE_OFFSET, libc::SYS_mmap as u64, args)?.0;
    crate::sys::write_memory(tid, &[(base, stub::code())]).map_err(fail("writing the stub"))?;
    task.set_signal_mask(!(1 << (SEED_SIGNAL - 1)))
        .map_err(fail("blocking signals"))?;
    Ok((task, slot(base, length, ids)))
}

/// The signal by which a seed tells of a program's end.
pub const SEED_SIGNAL: i32 = libc::SIGTRAP;

/// The slot of a task that shares or inherited the mapping made by [`equip`].
pub fn slot(base: u64, length: usize, ids: (i32, i32)) -> Slot {
    Slot {
        code: base,
        base: base + 4096,
        length: length - 4096,
        tgid: ids.0,
        tid: ids.1,
        signal: SEED_SIGNAL,
        frame: 0,
        mask: None,
    }
}

/// One system call by the `syscall` instruction at `address`; the task must not be expected to survive us.
pub fn call_at(
    task: Stopped,
    address: u64,
    nr: u64,
    args: [u64; 6],
) -> Result<(Stopped, u64), RunError> {
    let tid = task.tid();
    let fail = |doing| move |source| RunError::System { tid, doing, source };
    let mut r = task.registers().map_err(fail("reading registers"))?;
    (r.rip, r.rax, r.orig_rax) = (address, nr, u64::MAX);
    [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = args;
    task.set_registers(&r).map_err(fail("setting registers"))?;
    let (mut task, mut stops) = (task, 0);
    while stops < 2 {
        let running = task.resume_to_syscall(0).map_err(fail("resuming"))?;
        task = match running.wait().map_err(fail("waiting"))? {
            Waited::Gone => return Err(RunError::Gone(tid)),
            Waited::Stopped(task) => task,
        };
        stops += usize::from(task.stop() == Stop::Syscall);
    }
    let result = task.registers().map_err(fail("reading registers"))?.rax;
    match result as i64 {
        errno @ -4095..=-1 => Err(RunError::Call {
            index: 0,
            label: format!("system call {nr} in new task {tid}"),
            source: io::Error::from_raw_os_error(-errno as i32),
        }),
        _ => Ok((task, result)),
    }
}

fn memfd(bytes: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Write;
    // SAFETY: the name is a C string; the result is a new descriptor that we own.
    let fd = unsafe { libc::memfd_create(c"ckptd-seed".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(bytes)?;
    Ok(file.into())
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0i32; 2];
    // SAFETY: `ends` has room for two descriptors, which we then own.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}
