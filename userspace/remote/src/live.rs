//! The stub lent to a process of a running job.
//!
//! Its code goes into unused zero bytes at the end of an executable mapping (the vdso's, usually) and its data into a mapping
//! made for the purpose; both are gone afterwards. At every instant the task finds back to what it did even
//! if we are dead: the two calls that make and remove the mapping are followed by instructions that restore the registers
//! they changed, and a program ends in `rt_sigreturn` from a frame prepared beforehand. Normally neither is reached: the task is stopped
//! first and given its registers back, so that the kernel itself continues an interrupted system call.

use std::time::Duration;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::stub::{self, HEADER, RunError, Slot};
use crate::task::{Registers, Running, Stop, Stopped, Waited};

/// Room for programs in each thread's slot, in bytes.
const PROGRAM_ROOM: usize = 24 << 10;
/// Bytes of a [`Room`].
const CODE_ROOM: usize = 384;
/// A room's last three words say what of ours is in the process: start and length of the data mapping, then [`MARK`]. While there is no
/// mapping, the start is the room's own, and 0 when all is over.
const RECORD: usize = CODE_ROOM - 24;
const MARK: u64 = u64::from_le_bytes(*b"ckptd\0\0\x01");
const PAGE: usize = 4096;

/// Unused bytes at the end of an executable mapping, where the stub's code can lie.
#[derive(Debug)]
pub struct Room {
    code: u64,
    /// What is in them: zeros, or what a ckptd that was killed has left there.
    found: [u8; CODE_ROOM],
    /// The data mapping that it has left.
    left: Option<Range<u64>>,
    /// Whether tasks may still be on their way back from there.
    busy: bool,
}

impl Room {
    /// Looks for room in a process: in the vdso if it has some. Zero bytes at the end of a mapping are padding, as no
    /// compiler emits `add [rax], al` for its own sake.
    pub fn find(pid: i32) -> io::Result<Option<Self>> {
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let in_vdso = vdso_end(pid, &memory).and_then(|end| Self::before(end, &memory));
        if in_vdso.is_some() {
            return Ok(in_vdso);
        }
        let maps = crate::sys::read_text(format!("/proc/{pid}/maps"))?;
        let executable = |line: &&str| {
            let permissions = line.split_whitespace().nth(1);
            permissions.is_some_and(|p| p.starts_with("r-xp")) && !line.ends_with("[vsyscall]")
        };
        let ends = maps.lines().filter(executable).filter_map(|line| {
            let end = line.split(['-', ' ']).nth(1)?;
            u64::from_str_radix(end, 16).ok()
        });
        Ok(ends.into_iter().find_map(|end| Self::before(end, &memory)))
    }

    /// The room at the end of a mapping, if it is unused or ours.
    fn before(end: u64, memory: &File) -> Option<Self> {
        let mut found = [0u8; CODE_ROOM];
        let code = end.checked_sub(CODE_ROOM as u64)?;
        memory.read_exact_at(&mut found, code).ok()?;
        let ours = word(&found, RECORD + 16) == MARK;
        if !ours && found.iter().any(|&byte| byte != 0) {
            return None;
        }
        let (base, length) = (word(&found, RECORD), word(&found, RECORD + 8));
        let mut first = [0; 8];
        // The mapping says so too: the job may have another one there by now.
        let left = (ours
            && length != 0
            && memory.read_exact_at(&mut first, base).is_ok()
            && word(&first, 0) == MARK ^ base)
            .then(|| base..base.saturating_add(length));
        Some(Self {
            code,
            found,
            left,
            busy: ours && base != 0,
        })
    }

    /// Whether no task can be in our code.
    pub fn is_calm(&self) -> bool {
        !self.busy
    }

    /// Brings a task that a killed ckptd has left in our code to where that code leads. To be called for every thread of a process
    /// before anything is put into the room.
    pub fn run_out(&self, task: Stopped) -> Result<Stopped, RunError> {
        let tid = task.tid();
        let fail = |doing| move |source| RunError::System { tid, doing, source };
        let inside = |task: &Stopped| -> Result<Option<Registers>, RunError> {
            let r = task.registers().map_err(fail("reading registers"))?;
            let code = self.code..self.code + CODE_ROOM as u64;
            Ok(code.contains(&r.rip).then_some(r))
        };
        let Some(registers) = inside(&task)? else {
            return Ok(task);
        };
        if let Some(back) = returned(&registers, &self.found) {
            task.set_registers(&back)
                .map_err(fail("setting registers"))?;
            return Ok(task);
        }
        // Only in system calls does it leave the stub, so none of the job's own instructions run here.
        task.set_signal_mask(!0).map_err(fail("blocking signals"))?;
        let (mut task, mut signal) = (task, 0);
        while inside(&task)?.is_some() {
            let running = task.resume_to_syscall(signal).map_err(fail("resuming"))?;
            task = match running.wait().map_err(fail("waiting"))? {
                Waited::Gone => return Err(RunError::Gone(tid)),
                Waited::Stopped(task) => task,
            };
            signal = match task.stop() {
                Stop::Signal(signal) => signal,
                _ => 0,
            };
        }
        interrupt_stop(task, 0)
    }

    /// Says in the room that it is ours, and which mapping is.
    fn record(&self, task: &Stopped, mapping: &Range<u64>) -> io::Result<()> {
        let length = mapping.end - mapping.start;
        let at = self.code + RECORD as u64;
        task.poke(at + 16, &MARK.to_ne_bytes())?;
        task.poke(
            at,
            &[mapping.start.to_ne_bytes(), length.to_ne_bytes()].concat(),
        )
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

/// Where the vdso ends, by the auxiliary vector and its own ELF header (elf(5)): much faster to read than all mappings.
fn vdso_end(pid: i32, memory: &File) -> Option<u64> {
    let auxv = crate::sys::read_file(format!("/proc/{pid}/auxv")).ok()?;
    let mut entries = auxv.chunks_exact(16);
    let base = entries.find(|entry| word(entry, 0) == libc::AT_SYSINFO_EHDR)?;
    let base = word(base, 8);
    let mut header = [0; 64];
    memory.read_exact_at(&mut header, base).ok()?;
    if !header.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let sections = u64::from(header[58]) * u64::from(header[60]);
    let length = word(&header, 40).checked_add(sections)?;
    base.checked_add(length.checked_next_multiple_of(PAGE as u64)?)
}

/// Where our mapping goes if nothing is there: far from where the kernel would put it, in a hole the job may count on while a ckptd
/// that was killed has not been cleared up after.
const ASIDE: u64 = 0x2a00_0000_0000;

/// The stub inside one process.
#[derive(Debug)]
pub struct Lent {
    room: Room,
    /// The data mapping.
    base: u64,
    length: usize,
    slot_length: usize,
    frame_room: usize,
    slots: usize,
}

impl Lent {
    /// Puts the stub into the process of `leader`, a task in an interrupt or signal stop, with slots for `threads` threads whose xsave
    /// areas have at most `xstate` bytes. What a killed ckptd has left is taken away first.
    pub fn install(
        leader: Stopped,
        room: Room,
        threads: usize,
        xstate: usize,
    ) -> Result<(Stopped, Self), RunError> {
        let tid = leader.tid();
        let fail = |doing| move |source| RunError::System { tid, doing, source };
        let frame_room = (FRAME_FPSTATE + xstate + 64).next_multiple_of(64);
        let slot_length = (HEADER + frame_room + PROGRAM_ROOM).next_multiple_of(PAGE);
        let length = slot_length * threads;
        let mut leader = leader;
        if let Some(left) = &room.left {
            leader = unmap(leader, room.code, left)?;
        }
        room.record(&leader, &(room.code..room.code))
            .map_err(fail("writing the stub"))?;
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let (leader, base) = single_call(
            leader,
            room.code,
            libc::SYS_mmap as u64,
            [ASIDE, length as u64, prot, flags, u64::MAX, 0],
        )?;
        let lent = Self {
            room,
            base,
            length,
            slot_length,
            frame_room,
            slots: threads,
        };
        crate::sys::write_memory(tid, &[(base, &(MARK ^ base).to_ne_bytes())])
            .and_then(|()| lent.room.record(&leader, &lent.range()))
            .and_then(|()| leader.poke(lent.room.code, stub::code()))
            .map_err(fail("writing the stub"))?;
        Ok((leader, lent))
    }

    /// The memory that is ours, not the job's.
    pub fn range(&self) -> Range<u64> {
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
            code: self.room.code,
            base: start + self.frame_room as u64,
            length: self.slot_length - self.frame_room,
            tgid: ids.0,
            tid: ids.1,
            signal,
            frame: start + 8,
            mask: Some(!(1 << (signal - 1))),
        })
    }

    /// Takes the stub out again. The caller gives the task its registers and mask back before.
    pub fn remove(self, leader: Stopped) -> Result<Stopped, RunError> {
        let leader = unmap(leader, self.room.code, &self.range())?;
        let tid = leader.tid();
        // In this order, the mark last. Code that was left stays: a signal handler may have been entered from it, and return to it.
        let mut before = self.room.found;
        before[RECORD..RECORD + 16].fill(0);
        leader
            .poke(self.room.code, &before)
            .map_err(|source| RunError::System {
                tid,
                doing: "removing the stub",
                source,
            })?;
        Ok(leader)
    }
}

/// Unmaps memory of ours.
fn unmap(task: Stopped, code: u64, range: &Range<u64>) -> Result<Stopped, RunError> {
    let length = range.end - range.start;
    let args = [range.start, length, 0, 0, 0, 0];
    single_call(task, code, libc::SYS_munmap as u64, args).map(|(task, _)| task)
}

/// What a thread goes back to.
#[derive(Debug, Clone)]
pub struct State {
    /// As read from the stopped thread.
    pub registers: Registers,
    /// The system call that it was caught in, as its program made it, and not as restart_syscall(2).
    pub call: Option<u64>,
    /// Signal mask.
    pub mask: u64,
    /// The xsave area.
    pub xstate: Vec<u8>,
}

/// Registers with which the interrupted system call, if any, goes on: what the kernel does when no handler runs
/// (arch/x86/kernel/signal.c, arch_do_signal_or_restart). A call for whose time the kernel has a restart block is called `again`.
fn restarted(registers: &Registers, again: u64) -> Registers {
    let mut r = *registers;
    if r.orig_rax as i64 >= 0 && matches!(r.rax as i64, -516 | -514..=-512) {
        r.rip -= 2;
        r.rax = if r.rax as i64 == -516 {
            again
        } else {
            r.orig_rax
        };
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
    let back = restarted(&before, libc::SYS_restart_syscall as u64);
    task.poke(code, &return_code(&back))
        .map_err(fail("writing the stub"))?;
    let mut r = before;
    (r.rip, r.rax, r.orig_rax) = (code, nr, u64::MAX);
    [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = args;
    task.set_registers(&r).map_err(fail("setting registers"))?;
    let mut task = task;
    let mut entered = false;
    let result = loop {
        let running = task.resume_to_syscall(0).map_err(fail("resuming"))?;
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
                return single_call(interrupt_stop(task, signal)?, code, nr, args);
            }
            _ => {}
        }
    };
    let task = interrupt_stop(task, 0)?;
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

/// One system call in a task of a running job, which then goes on as if nothing had been.
///
/// # Errors
/// [`RunError::Call`] when the call fails; the task goes on all the same. [`RunError::System`] where there is no room, or others use it.
pub fn borrow_call(tid: i32, nr: i64, args: [u64; 6]) -> Result<u64, RunError> {
    let fail = |doing| move |source| RunError::System { tid, doing, source };
    let room = Room::find(tid).map_err(fail("looking for room"))?;
    let room = room
        .filter(Room::is_calm)
        .ok_or_else(|| io::Error::other("there is none"));
    let code = room.map_err(fail("looking for room"))?.code;
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

/// A traced task that was lost sight of, by an error halfway: stopped where it is. `None` when it has ended, or does not stop for so long.
pub fn recover(tid: i32, patience: Duration) -> Option<Stopped> {
    let running = Running::attached(tid);
    running.interrupt().ok()?;
    // Only of a stopped task can this be asked; then there may be nothing left to wait for.
    if crate::sys::ptrace::registers(tid).is_ok() {
        return Some(Stopped::known(tid));
    }
    match running.wait_at_most(patience) {
        Ok(Ok(Waited::Stopped(task))) => Some(task),
        _ => None,
    }
}

/// From any stop into one where the kernel looks at signals and restarts system calls, without an instruction of the task's own in
/// between. `signal` (0: none) is delivered if the task has stopped to receive one.
pub fn interrupt_stop(task: Stopped, signal: i32) -> Result<Stopped, RunError> {
    let tid = task.tid();
    let fail = |doing| move |source| RunError::System { tid, doing, source };
    crate::sys::ptrace::request(libc::PTRACE_INTERRUPT, tid, 0, 0).map_err(fail("stopping"))?;
    let running = task.resume(signal).map_err(fail("resuming"))?;
    match running.wait().map_err(fail("waiting"))? {
        Waited::Gone => Err(RunError::Gone(tid)),
        Waited::Stopped(task) => Ok(task),
    }
}

/// The `syscall` that [`return_code`] begins with and its first load.
const RETURN_CODE: [u8; 4] = [0x0f, 0x05, 0x48, 0xb8];
/// Bytes of each load; the value is the last eight.
const LOAD: usize = 10;
/// Where it has the address that it jumps to.
const TARGET: usize = 2 + 9 * LOAD + 6;

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

/// The registers that [`return_code`] leads to, whichever of its instructions is next; `None` when `code` is something else.
fn returned(registers: &Registers, code: &[u8; CODE_ROOM]) -> Option<Registers> {
    if !code.starts_with(&RETURN_CODE) {
        return None;
    }
    let loaded = |nth: usize| word(code, 2 + nth * LOAD + 2);
    let mut r = *registers;
    (r.rax, r.rcx, r.rdx, r.rsi) = (loaded(0), loaded(1), loaded(2), loaded(3));
    (r.rdi, r.r8, r.r9) = (loaded(4), loaded(5), loaded(6));
    (r.r10, r.r11) = (loaded(7), loaded(8));
    (r.rip, r.orig_rax) = (word(code, TARGET), u64::MAX);
    Some(r)
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
    // rt_sigreturn(2) takes the restart block away: such a call starts over.
    let again = state.call.unwrap_or(state.registers.orig_rax);
    let r = restarted(&state.registers, again);
    let mut out = vec![0u8; FRAME_FPSTATE + state.xstate.len() + 4];
    let mut put =
        |offset: usize, value: u64| out[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
    // In place of the return address, which nobody needs here.
    put(0, MARK ^ address);
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
