//! Tasks under ptrace(2). A [`Running`] task can only be interrupted and waited for; registers, memory and
//! signals belong to a [`Stopped`] one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::sys::ptrace;

/// General registers as `PTRACE_GETREGSET(NT_PRSTATUS)` gives them on x86-64.
pub type Registers = libc::user_regs_struct;

/// New processes and threads of a traced task are traced from their first instruction on, and an exec is reported.
pub const FOLLOW: i32 = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC;

/// A task that we trace and that runs (or is on its way into a stop nobody has seen yet).
#[derive(Debug)]
pub struct Running {
    tid: i32,
}

/// A task in a ptrace stop. Dropping it leaves it stopped; it runs on when its tracer ends or detaches.
#[derive(Debug)]
pub struct Stopped {
    tid: i32,
    stop: Stop,
}

/// Why a task stopped (ptrace(2), "Stopped states").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// `PTRACE_INTERRUPT` took effect, or a new task was attached automatically.
    Interrupt,
    /// Job control: the process as a whole is stopped by this signal.
    Group(i32),
    /// A signal is about to be delivered; it is dropped unless it is passed on when resuming.
    Signal(i32),
    /// `PTRACE_EVENT_*`.
    Event(i32),
    /// Entry to or exit from a system call.
    Syscall,
}

/// What waiting for a task found.
#[derive(Debug)]
pub enum Waited {
    /// It is in a ptrace stop.
    Stopped(Stopped),
    /// It has ended (or is a zombie). It has not been reaped: its parent, even if that is us, still can.
    Gone,
}

impl Running {
    /// Attaches to a task of somebody else's without stopping it (`PTRACE_SEIZE`). Should the tracer die, the task
    /// runs on untouched.
    ///
    /// # Errors
    /// EPERM: no right, or somebody else traces it; ESRCH: gone.
    pub fn seize(tid: i32, options: i32) -> io::Result<Self> {
        ptrace::request(libc::PTRACE_SEIZE, tid, 0, options as u64)?;
        Ok(Self { tid })
    }

    /// A task that a traced parent has just created, already attached through [`FOLLOW`].
    pub fn attached(tid: i32) -> Self {
        Self { tid }
    }

    /// The task's id.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Asks the task to stop; [`Running::wait`] sees it stopped.
    pub fn interrupt(&self) -> io::Result<()> {
        ptrace::request(libc::PTRACE_INTERRUPT, self.tid, 0, 0)
    }

    /// Waits until the task stops or ends.
    ///
    /// The end of a main thread is told only when all threads of its process have been reaped (kernel/exit.c, delay_group_leader),
    /// which nobody does while we wait for this one. So this asks again and again instead of sleeping in the kernel.
    pub fn wait(self) -> io::Result<Waited> {
        let mut running = self;
        loop {
            match running.wait_at_most(Duration::MAX)? {
                Ok(waited) => return Ok(waited),
                Err(moving) => running = moving,
            }
        }
    }

    /// As [`Running::wait`], for so long: the task itself when nothing has happened by then.
    pub fn wait_at_most(self, patience: Duration) -> io::Result<Result<Waited, Self>> {
        const EAGER: u32 = 50;
        let (mut running, mut turn, begin) = (self, 0u32, Instant::now());
        loop {
            let looks = turn != 0 && turn % EAGER == 0;
            let ended = looks && ptrace::is_zombie(running.tid);
            running = match running.poll()? {
                Ok(waited) => return Ok(Ok(waited)),
                Err(_) if ended => return Ok(Ok(Waited::Gone)),
                Err(running) if looks && begin.elapsed() > patience => return Ok(Err(running)),
                Err(running) => running,
            };
            if turn < EAGER {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(20));
            }
            turn = turn.wrapping_add(1);
        }
    }

    /// As [`Running::wait`], without waiting: the task itself when nothing has happened yet.
    pub fn poll(self) -> io::Result<Result<Waited, Running>> {
        Ok(match ptrace::wait(self.tid)? {
            Some(waited) => Ok(Self::waited(self.tid, waited)),
            None => Err(self),
        })
    }

    fn waited(tid: i32, waited: ptrace::Wait) -> Waited {
        let status = match waited {
            ptrace::Wait::Ended => return Waited::Gone,
            ptrace::Wait::Stopped(status) => status,
        };
        let signal = libc::WSTOPSIG(status);
        let stop = match status >> 16 {
            0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
            0 => Stop::Signal(signal),
            libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupt,
            libc::PTRACE_EVENT_STOP => Stop::Group(signal),
            event => Stop::Event(event),
        };
        Waited::Stopped(Stopped { tid, stop })
    }
}

impl Stopped {
    /// A task that is known to be in an interrupt or signal stop, though whoever had it has lost it on the way.
    pub fn known(tid: i32) -> Self {
        Self {
            tid,
            stop: Stop::Interrupt,
        }
    }

    /// The task's id.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Why it stopped.
    pub fn stop(&self) -> Stop {
        self.stop
    }

    /// Lets the task run, delivering `signal` (0: none) if it stopped to receive one.
    pub fn resume(self, signal: i32) -> io::Result<Running> {
        self.restart(libc::PTRACE_CONT, signal)
    }

    /// As [`Stopped::resume`], up to the task's next entry to or exit from a system call.
    pub fn resume_to_syscall(self, signal: i32) -> io::Result<Running> {
        self.restart(libc::PTRACE_SYSCALL, signal)
    }

    fn restart(self, request: u32, signal: i32) -> io::Result<Running> {
        ptrace::request(request, self.tid, 0, signal as u64)?;
        Ok(Running { tid: self.tid })
    }

    /// Lets the task go for good, delivering `signal` (0: none).
    pub fn detach(self, signal: i32) -> io::Result<()> {
        ptrace::request(libc::PTRACE_DETACH, self.tid, 0, signal as u64)
    }

    /// Replaces the trace options (`PTRACE_O_*`).
    pub fn set_options(&self, options: i32) -> io::Result<()> {
        ptrace::request(libc::PTRACE_SETOPTIONS, self.tid, 0, options as u64)
    }

    /// The id of the new task, at a fork, vfork or clone event.
    pub fn event_message(&self) -> io::Result<u64> {
        ptrace::event_message(self.tid)
    }

    /// General registers.
    pub fn registers(&self) -> io::Result<Registers> {
        ptrace::registers(self.tid)
    }

    /// Sets the general registers. With `orig_rax` a system call's number and `rax` one of the kernel's -ERESTART*
    /// codes, the kernel continues that call when the task is resumed from an interrupt or signal stop
    /// (arch/x86/kernel/signal.c, arch_do_signal_or_restart).
    pub fn set_registers(&self, registers: &Registers) -> io::Result<()> {
        ptrace::set_registers(self.tid, registers)
    }

    /// The whole xsave area (`NT_X86_XSTATE`), in the standard format.
    pub fn xstate(&self) -> io::Result<Vec<u8>> {
        ptrace::xstate(self.tid)
    }

    /// Sets the xsave area.
    ///
    /// # Errors
    /// EINVAL when this CPU lacks a component that is in use.
    pub fn set_xstate(&self, area: &[u8]) -> io::Result<()> {
        ptrace::set_xstate(self.tid, area)
    }

    /// The signal mask; bit n-1 is signal n.
    pub fn signal_mask(&self) -> io::Result<u64> {
        ptrace::signal_mask(self.tid)
    }

    /// Sets the signal mask.
    pub fn set_signal_mask(&self, mask: u64) -> io::Result<()> {
        ptrace::set_signal_mask(self.tid, mask)
    }

    /// Signals pending for this thread, or with `shared` for its whole process, in queue order, each as the
    /// kernel's siginfo_t.
    pub fn pending_signals(&self, shared: bool) -> io::Result<Vec<[u8; 128]>> {
        ptrace::pending_signals(self.tid, shared)
    }

    /// siginfo_t of the signal the task has stopped for.
    pub fn signal_info(&self) -> io::Result<[u8; 128]> {
        ptrace::signal_info(self.tid)
    }

    /// Replaces the siginfo_t that is delivered with the signal the task has stopped for.
    pub fn set_signal_info(&self, info: &[u8; 128]) -> io::Result<()> {
        ptrace::set_signal_info(self.tid, info)
    }

    /// The registered restartable-sequence area: address, size, signature, flags; zeros where there is none.
    pub fn rseq(&self) -> io::Result<(u64, u32, u32, u32)> {
        ptrace::rseq(self.tid)
    }

    /// Writes into the task's memory whatever its protection; private pages are copied first
    /// (mm/gup.c, FOLL_FORCE). `address` and the length must be multiples of 8.
    pub fn poke(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        // At once, unless the kernel was told that nobody may (proc_mem.force_override).
        if bytes.len() > 32
            && let Ok(memory) = File::options()
                .write(true)
                .open(format!("/proc/{}/mem", self.tid))
            && memory.write_all_at(bytes, address).is_ok()
        {
            return Ok(());
        }
        for (i, word) in bytes.chunks_exact(8).enumerate() {
            let word = u64::from_ne_bytes(word.try_into().unwrap_or_default());
            ptrace::request(
                libc::PTRACE_POKEDATA,
                self.tid,
                address + 8 * i as u64,
                word,
            )?;
        }
        Ok(())
    }
}
