//! The stub lent to a process of a running job.
//!
//! Its code goes into unused zero bytes at the end of an executable mapping (the vdso's, usually) and its data into a mapping
//! made for the purpose; both are gone afterwards. At every instant the task finds back to what it did even
//! if we are dead: the two calls that make and remove the mapping are followed by instructions that restore the registers
//! they changed, and a program ends in `rt_sigreturn` from a frame prepared beforehand. Normally neither is reached: the task is stopped
//! first and given its registers back, so that the kernel itself continues an interrupted system call.

use std::io;

use crate::stub::{self, HEADER, RunError, Slot};
use crate::task::{Registers, Running, Stop, Stopped, Waited};

/// Room for programs in each thread's slot, in bytes.
const PROGRAM_ROOM: usize = 24 << 10;
/// Room needed for the code, in bytes.
pub const CODE_ROOM: usize = 384;
const PAGE: usize = 4096;

/// The stub inside one process.
#[derive(Debug)]
pub struct Lent {
    /// Where the code lies.
    code: u64,
    /// The data mapping.
    base: u64,
    length: usize,
    slot_length: usize,
    frame_room: usize,
    slots: usize,
}

impl Lent {
    /// Puts the stub into the process of `leader`, a task in an interrupt or signal stop, with slots for `threads` threads.
    /// `code` is the address of [`CODE_ROOM`] unused bytes in an executable mapping, 8-byte aligned.
    pub fn install(
        leader: Stopped,
        code: u64,
        threads: usize,
        xstate: usize,
    ) -> Result<(Stopped, Self), RunError> {
        let frame_room = (FRAME_FPSTATE + xstate + 64).next_multiple_of(64);
        let slot_length = (HEADER + frame_room + PROGRAM_ROOM).next_multiple_of(PAGE);
        let length = slot_length * threads;
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let (leader, base) = single_call(
            leader,
            code,
            libc::SYS_mmap as u64,
            [0, length as u64, prot, flags, u64::MAX, 0],
        )?;
        let mut bytes = stub::code().to_vec();
        bytes.resize(CODE_ROOM, 0);
        let tid = leader.tid();
        leader
            .poke(code, &bytes)
            .map_err(|source| RunError::System {
                tid,
                doing: "writing the stub",
                source,
            })?;
        Ok((
            leader,
            Self {
                code,
                base,
                length,
                slot_length,
                frame_room,
                slots: threads,
            },
        ))
    }

    /// The memory that is ours, not the job's.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.base..self.base + self.length as u64
    }

    /// The slot of the `nth` thread with its way back to `registers` written into it. `signal` tells us of a program's end
    /// and should be one that the process ignores.
    pub fn slot(
        &self,
        nth: usize,
        task: &Stopped,
        ids: (i32, i32),
        signal: i32,
        state: &State,
    ) -> Result<Slot, RunError> {
        assert!(nth < self.slots, "one slot a thread");
        let start = self.base + (nth * self.slot_length) as u64;
        // Programs start at the slot's end of the frame, so that the slot given out begins with the program.
        let frame = frame(start, state);
        crate::sys::write_memory(task.tid(), &[(start, &frame)]).map_err(|source| {
            RunError::System {
                tid: task.tid(),
                doing: "writing the way back",
                source,
            }
        })?;
        Ok(Slot {
            code: self.code,
            base: start + self.frame_room as u64,
            length: self.slot_length - self.frame_room,
            tgid: ids.0,
            tid: ids.1,
            signal,
            frame: start + 8,
            mask: Some(!(1 << (signal - 1))),
        })
    }

    /// Takes the stub out again. The caller gives the task its registers and mask back afterwards.
    pub fn remove(self, leader: Stopped) -> Result<Stopped, RunError> {
        let (leader, _) = single_call(
            leader,
            self.code,
            libc::SYS_munmap as u64,
            [self.base, self.length as u64, 0, 0, 0, 0],
        )?;
        let tid = leader.tid();
        leader
            .poke(self.code, &[0; CODE_ROOM])
            .map_err(|source| RunError::System {
                tid,
                doing: "removing the stub",
                source,
            })?;
        Ok(leader)
    }
}

/// [`CODE_ROOM`] unused bytes at the end of an executable mapping: the vdso's if it has them. Zero bytes there are padding, as no
/// compiler emits `add [rax], al` for its own sake.
pub fn find_room(pid: i32) -> io::Result<Option<u64>> {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    let executable = |line: &&str| {
        line.split_whitespace()
            .nth(1)
            .is_some_and(|p| p.starts_with("r-xp"))
    };
    let mut candidates: Vec<&str> = maps.lines().filter(executable).collect();
    candidates.sort_by_key(|line| !line.ends_with("[vdso]"));
    for line in candidates {
        let end = line
            .split(['-', ' '])
            .nth(1)
            .and_then(|end| u64::from_str_radix(end, 16).ok());
        let Some(end) = end.filter(|_| !line.ends_with("[vsyscall]")) else {
            continue;
        };
        let mut tail = [1u8; CODE_ROOM];
        let start = end - CODE_ROOM as u64;
        if memory.read_exact_at(&mut tail, start).is_ok() && is_room(&tail) {
            return Ok(Some(start));
        }
    }
    Ok(None)
}

/// Zeros, or what a ckptd that was killed has left there; every task has long returned from it.
fn is_room(tail: &[u8; CODE_ROOM]) -> bool {
    let return_code = [0x0f, 0x05, 0x48, 0xb8];
    tail.iter().all(|&b| b == 0) || tail.starts_with(stub::code()) || tail.starts_with(&return_code)
}

/// What a thread goes back to.
#[derive(Debug, Clone)]
pub struct State {
    /// As read from the stopped thread.
    pub registers: Registers,
    /// Signal mask.
    pub mask: u64,
    /// The xsave area.
    pub xstate: Vec<u8>,
}

/// Registers with which the interrupted system call, if any, is entered again: what the kernel does when no handler
/// runs (arch/x86/kernel/signal.c, arch_do_signal_or_restart). A call that the kernel would resume through restart_syscall(2) starts over.
fn restarted(registers: &Registers) -> Registers {
    let mut r = *registers;
    if r.orig_rax as i64 >= 0 && matches!(r.rax as i64, -516 | -514..=-512) {
        r.rip -= 2;
        r.rax = r.orig_rax;
    }
    r
}

/// One system call by code that then restores every register it changed and jumps back. Leaves the task stopped where the
/// kernel looks at signals, with `task`'s registers as they were. Signals that arrive meanwhile are delivered at once.
fn single_call(
    task: Stopped,
    code: u64,
    nr: u64,
    args: [u64; 6],
) -> Result<(Stopped, u64), RunError> {
    let tid = task.tid();
    let fail = |doing| move |source| RunError::System { tid, doing, source };
    let before = task.registers().map_err(fail("reading registers"))?;
    task.poke(code, &return_code(&restarted(&before)))
        .map_err(fail("writing the stub"))?;
    let mut r = before;
    (r.rip, r.rax, r.orig_rax) = (code, nr, u64::MAX);
    [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = args;
    task.set_registers(&r).map_err(fail("setting registers"))?;
    let mut task = task;
    let mut entered = false;
    let result = loop {
        let running = task.resume_to_syscall().map_err(fail("resuming"))?;
        task = match running.wait().map_err(fail("waiting"))? {
            Waited::Gone => return Err(RunError::Gone(tid)),
            Waited::Stopped(task) => task,
        };
        match task.stop() {
            Stop::Syscall if entered => {
                break task.registers().map_err(fail("reading registers"))?.rax;
            }
            Stop::Syscall => entered = true,
            // As if it had come before the checkpoint: the job's handler is entered from the job's own registers, then again.
            Stop::Signal(signal) => {
                task.set_registers(&before)
                    .map_err(fail("setting registers"))?;
                let task = stop(task.resume(signal).map_err(fail("resuming"))?)?;
                return single_call(task, code, nr, args);
            }
            _ => {}
        }
    };
    let task = interrupt_stop(task)?;
    task.set_registers(&before)
        .map_err(fail("setting registers"))?;
    match result as i64 {
        errno @ -4095..=-1 => Err(RunError::Call {
            index: 0,
            label: format!("system call {nr} in task {tid}"),
            source: io::Error::from_raw_os_error(-errno as i32),
        }),
        _ => Ok((task, result)),
    }
}

/// One system call in a task of a running job, which then goes on as if nothing had been. `code` as for [`Lent::install`].
///
/// # Errors
/// [`RunError::Call`] when the call fails; the task goes on all the same.
pub fn borrow_call(tid: i32, code: u64, nr: i64, args: [u64; 6]) -> Result<u64, RunError> {
    let fail = |doing| move |source| RunError::System { tid, doing, source };
    let running = Running::seize(tid, libc::PTRACE_O_TRACESYSGOOD).map_err(fail("attaching"))?;
    let task = stop(running)?;
    let (task, result) = single_call(task, code, nr as u64, args)?;
    task.poke(code, &[0; CODE_ROOM])
        .map_err(fail("removing the stub"))?;
    task.detach(0).map_err(fail("letting go"))?;
    Ok(result)
}

/// Stops a running task where the kernel looks at signals; signals on the way are delivered.
pub fn stop(running: Running) -> Result<Stopped, RunError> {
    let tid = running.tid();
    let fail = |doing| move |source| RunError::System { tid, doing, source };
    running.interrupt().map_err(fail("stopping"))?;
    let mut running = running;
    loop {
        match running.wait().map_err(fail("waiting"))? {
            Waited::Gone => return Err(RunError::Gone(tid)),
            Waited::Stopped(task) => match task.stop() {
                Stop::Interrupt | Stop::Group(_) => return Ok(task),
                Stop::Signal(signal) => running = task.resume(signal).map_err(fail("resuming"))?,
                _ => running = task.resume(0).map_err(fail("resuming"))?,
            },
        }
    }
}

/// From any stop into one where the kernel looks at signals and restarts system calls.
pub fn interrupt_stop(task: Stopped) -> Result<Stopped, RunError> {
    let tid = task.tid();
    let fail = |doing| move |source| RunError::System { tid, doing, source };
    crate::sys::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0).map_err(fail("stopping"))?;
    let running = task.resume(0).map_err(fail("resuming"))?;
    match running.wait().map_err(fail("waiting"))? {
        Waited::Gone => Err(RunError::Gone(tid)),
        Waited::Stopped(task) => Ok(task),
    }
}

/// `syscall`, then loads of the registers it and its arguments changed, then a jump. None of it touches the flags or the stack.
fn return_code(r: &Registers) -> Vec<u8> {
    let mut code = vec![0x0f, 0x05];
    let mut load = |rex: u8, opcode: u8, value: u64| {
        code.extend([rex, opcode]);
        code.extend(value.to_le_bytes());
    };
    load(0x48, 0xb8, r.rax);
    load(0x48, 0xb9, r.rcx);
    load(0x48, 0xba, r.rdx);
    load(0x48, 0xbe, r.rsi);
    load(0x48, 0xbf, r.rdi);
    load(0x49, 0xb8, r.r8);
    load(0x49, 0xb9, r.r9);
    load(0x49, 0xba, r.r10);
    load(0x49, 0xbb, r.r11);
    code.extend([0xff, 0x25, 0, 0, 0, 0]); // jmp [rip]
    code.extend(r.rip.to_le_bytes());
    code.resize(code.len().next_multiple_of(8), 0);
    code
}

// struct rt_sigframe (arch/x86/include/asm/sigframe.h): return address, ucontext, then for us the FPU state, 64-byte aligned.
const UC_STACK: usize = 8 + 16;
const UC_MCONTEXT: usize = 8 + 40;
const UC_SIGMASK: usize = UC_MCONTEXT + 256;
const FRAME_FPSTATE: usize = 512;

/// Offset of `uc_stack` from the address [`Slot::frame`] points to: sigaltstack(2) can write the current one right into the frame.
pub const FRAME_ALTSTACK: u64 = (UC_STACK - 8) as u64;

/// A signal frame at `address` that leads back to `state`.
fn frame(address: u64, state: &State) -> Vec<u8> {
    const UC_FP_XSTATE: u64 = 1;
    const UC_SIGCONTEXT_SS: u64 = 2;
    const UC_STRICT_RESTORE_SS: u64 = 4;
    const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
    const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
    let r = restarted(&state.registers);
    let mut out = vec![0u8; FRAME_FPSTATE + state.xstate.len() + 4];
    let mut put =
        |offset: usize, value: u64| out[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
    put(8, UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS);
    // struct sigcontext_64 (arch/x86/include/uapi/asm/sigcontext.h).
    let words = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx,
        r.rax, r.rcx, r.rsp, r.rip, r.eflags,
    ];
    for (i, word) in words.iter().enumerate() {
        put(UC_MCONTEXT + 8 * i, *word);
    }
    put(UC_MCONTEXT + 144, r.cs | r.ss << 48);
    put(UC_MCONTEXT + 184, address + FRAME_FPSTATE as u64);
    put(UC_SIGMASK, state.mask);
    let fp = &mut out[FRAME_FPSTATE..];
    let n = state.xstate.len();
    fp[..n].copy_from_slice(&state.xstate);
    // struct _fpx_sw_bytes in the fxsave area's software-reserved bytes at 464: without it the kernel restores only fxsave state.
    let features = state
        .xstate
        .get(512..520)
        .map_or([0; 8], |b| b.try_into().unwrap_or([0; 8]));
    let all = state
        .xstate
        .get(464..472)
        .map_or(features, |b| b.try_into().unwrap_or(features));
    let sw = &mut fp[464..512];
    sw.fill(0);
    sw[0..4].copy_from_slice(&FP_XSTATE_MAGIC1.to_ne_bytes());
    sw[4..8].copy_from_slice(&(n as u32 + 4).to_ne_bytes());
    sw[8..16].copy_from_slice(&all);
    sw[16..20].copy_from_slice(&(n as u32).to_ne_bytes());
    fp[n..n + 4].copy_from_slice(&FP_XSTATE_MAGIC2.to_ne_bytes());
    out
}
