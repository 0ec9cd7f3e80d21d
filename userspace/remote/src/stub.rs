//! The few instructions that run a [`Program`] inside a task: block signals, load a number and six arguments, `syscall`, store
//! the result, next; then tell the tracer by sending the task itself a signal, and go back to where the task was by
//! `rt_sigreturn`. A tracer that is alive stops the task at that signal; one that is dead is not missed.
//!
//! Each entry of the vector is 16 words: number, six pointers to argument cells, six cells, result, flags, unused.
//! Arguments are loaded through pointers so that one may be another entry's result.

use std::io;

use crate::program::{Arg, Expect, Program};
use crate::sys;
use crate::task::{Stop, Stopped, Waited};

std::arch::global_asm!(
    ".pushsection .rodata",
    ".balign 16",
    ".globl ckptd_stub_begin",
    "ckptd_stub_begin:",
    "mov edi, [r14 + 32]",
    "lea rsi, [r14 + 40]",
    "xor edx, edx",
    "mov r10d, 8",
    "mov eax, 14", // rt_sigprocmask
    "syscall",
    "2: mov rax, [rbx]",
    "mov rdi, [rbx + 8]",
    "mov rdi, [rdi]",
    "mov rsi, [rbx + 16]",
    "mov rsi, [rsi]",
    "mov rdx, [rbx + 24]",
    "mov rdx, [rdx]",
    "mov r10, [rbx + 32]",
    "mov r10, [r10]",
    "mov r8, [rbx + 40]",
    "mov r8, [r8]",
    "mov r9, [rbx + 48]",
    "mov r9, [r9]",
    "syscall",
    "mov [rbx + 104], rax",
    "test byte ptr [rbx + 112], 1",
    "jz 3f",
    "cmp rax, -4095",
    "jae 4f",
    "test byte ptr [rbx + 112], 2",
    "jz 3f",
    "cmp rax, [rbx + 120]",
    "jne 4f",
    "3: add rbx, 128",
    "cmp qword ptr [rbx], -1",
    "jne 2b",
    "4: mov rdi, [r14]",
    "mov rsi, [r14 + 8]",
    "mov rdx, [r14 + 16]",
    "mov eax, 234", // tgkill
    "syscall",
    "mov rsp, [r14 + 24]",
    "mov eax, 15", // rt_sigreturn
    "syscall",
    "ud2",
    ".balign 8",
    ".globl ckptd_stub_end",
    "ckptd_stub_end:",
    ".popsection",
);

unsafe extern "C" {
    static ckptd_stub_begin: u8;
    static ckptd_stub_end: u8;
}

/// The stub's machine code; position independent, a multiple of 8 bytes.
pub fn code() -> &'static [u8] {
    // SAFETY: both symbols are defined by the block above and enclose read-only bytes of this program.
    unsafe {
        let begin = &raw const ckptd_stub_begin;
        let end = &raw const ckptd_stub_end;
        std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin))
    }
}

/// Offset of the instruction behind the stub's `tgkill`.
fn after_tgkill() -> usize {
    let call = [0xb8, 234, 0, 0, 0, 0x0f, 0x05];
    code()
        .windows(call.len())
        .position(|bytes| bytes == call)
        .unwrap_or(0)
        + call.len()
}

const ENTRY: usize = 128;
const RESULT: usize = 104;
/// The words the stub finds through r14: thread group, thread, signal, address of the signal frame, how to change the signal mask,
/// and the mask.
pub(crate) const HEADER: usize = 64;

/// Where programs run in one task: its own piece of a writable mapping, and the stub's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Address of the code.
    pub code: u64,
    /// Start of the writable piece, 64-byte aligned.
    pub base: u64,
    /// Its length in bytes.
    pub length: usize,
    /// Ids of the task as it knows them itself.
    pub tgid: i32,
    /// See `tgid`.
    pub tid: i32,
    /// The signal that tells the tracer.
    pub signal: i32,
    /// Address just behind the word `rt_sigreturn` skips, or 0 where the task has nothing to return to.
    pub frame: u64,
    /// Signals to block while programs run. They stay blocked until the task's registers are set again or it returns by itself.
    pub mask: Option<u64>,
}

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The task has ended.
    #[error("task {0} has ended")]
    Gone(i32),
    /// A call failed.
    #[error("{label}: {source}")]
    Call {
        /// Which of the program's calls.
        index: usize,
        /// Its label.
        label: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A call succeeded with an unexpected result.
    #[error("{label}: got {got}, not {wanted}")]
    Unexpected {
        /// The call's label.
        label: String,
        /// What it gave.
        got: u64,
        /// What it must give.
        wanted: u64,
    },
    /// A blob or the whole program is larger than the slot.
    #[error("{0}: too large for the room inside the task")]
    TooLarge(String),
    /// ptrace or a memory transfer failed.
    #[error("task {tid}: {doing}: {source}")]
    System {
        /// The task.
        tid: i32,
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What a program's calls gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Each call's raw result: -4095..=-1 is an error number.
    pub results: Vec<i64>,
    outputs: Vec<Vec<u8>>,
}

impl Outcome {
    /// What the task wrote into an output blob.
    pub fn output(&self, blob: crate::Blob) -> &[u8] {
        self.outputs.get(blob.0).map_or(&[], Vec::as_slice)
    }

    /// A call's result, or its error.
    pub fn result(&self, call: usize) -> io::Result<u64> {
        match self.results[call] {
            errno @ -4095..=-1 => Err(io::Error::from_raw_os_error(-errno as i32)),
            value => Ok(value as u64),
        }
    }
}

/// A program on its way through a task, piece by piece as the slot has room.
#[derive(Debug)]
pub struct Run<'p> {
    program: &'p Program,
    slot: Slot,
    /// First call of the piece that is loaded.
    first: usize,
    loaded: usize,
    /// Place of each output blob of the loaded piece.
    outputs: Vec<(usize, u64)>,
    outcome: Outcome,
    /// Signals that arrived meanwhile and are still to be delivered.
    pub held: Vec<i32>,
}

impl<'p> Run<'p> {
    /// Prepares to run `program` in `slot`.
    pub fn new(slot: Slot, program: &'p Program) -> Self {
        let outcome = Outcome {
            results: Vec::with_capacity(program.calls.len()),
            outputs: vec![Vec::new(); program.blobs.len()],
        };
        Self {
            program,
            slot,
            first: 0,
            loaded: 0,
            outputs: Vec::new(),
            outcome,
            held: Vec::new(),
        }
    }

    /// Loads the next piece and sets the task off; `Err(task)` inside when nothing is left to run.
    pub fn start(&mut self, task: Stopped) -> Result<Result<crate::Running, Stopped>, RunError> {
        if self.first + self.loaded >= self.program.calls.len() {
            return Ok(Err(task));
        }
        let tid = task.tid();
        let fail = |doing| move |source| RunError::System { tid, doing, source };
        self.load(tid)?;
        let mut registers = task.registers().map_err(fail("reading registers"))?;
        registers.rip = self.slot.code;
        registers.rbx = self.slot.base + HEADER as u64;
        registers.r14 = self.slot.base;
        registers.orig_rax = u64::MAX;
        registers.rax = 0;
        task.set_registers(&registers)
            .map_err(fail("setting registers"))?;
        // In this order: from here on the stub leads back to the task's own mask, even without us. It blocks signals itself too:
        // should we die just here, none may come while it is on its way back, where the stack is not the task's own.
        if let Some(mask) = self.slot.mask {
            task.set_signal_mask(mask)
                .map_err(fail("blocking signals"))?;
        }
        task.resume(0).map(Ok).map_err(fail("resuming"))
    }

    fn load(&mut self, tid: i32) -> Result<(), RunError> {
        self.first += self.loaded;
        self.outputs.clear();
        let base = self.slot.base;
        // Calls grow from the front, blobs from the back.
        let mut image = vec![0u8; HEADER];
        let mut place = vec![u64::MAX; self.program.blobs.len()];
        let mut low = self.slot.length;
        let mut back: Vec<(usize, Vec<u8>)> = Vec::new();
        let header = [
            self.slot.tgid as u64,
            self.slot.tid as u64,
            self.slot.signal as u64,
            self.slot.frame,
            self.slot
                .mask
                .map_or(libc::SIG_BLOCK, |_| libc::SIG_SETMASK) as u64,
            self.slot.mask.unwrap_or(0),
        ];
        for (i, word) in header.iter().enumerate() {
            image[8 * i..8 * i + 8].copy_from_slice(&word.to_ne_bytes());
        }
        let mut loaded = 0;
        for call in &self.program.calls[self.first..] {
            let mut wanted = Vec::new();
            for arg in call.args {
                if let Arg::Blob(blob, _) = arg {
                    self.collect(blob.0, &place, &mut wanted);
                }
            }
            let size: usize = wanted
                .iter()
                .map(|&b| self.program.blobs[b].bytes.len().next_multiple_of(16))
                .sum();
            // Room for this entry and the end marker.
            if image.len() + 2 * ENTRY + size > low {
                break;
            }
            for index in wanted {
                let data = &self.program.blobs[index];
                low -= data.bytes.len().next_multiple_of(16);
                place[index] = base + low as u64;
                // What an earlier piece of the program has written there is there for a later one.
                let written = &self.outcome.outputs[index];
                let mut bytes = if written.is_empty() {
                    data.bytes.clone()
                } else {
                    written.clone()
                };
                for &(offset, target) in &data.pointers {
                    bytes[offset..offset + 8].copy_from_slice(&place[target.0].to_ne_bytes());
                }
                if data.output {
                    self.outputs.push((index, place[index]));
                }
                back.push((low, bytes));
            }
            let entry = base + image.len() as u64;
            let mut words = [0u64; 16];
            words[0] = call.nr as u64;
            for (i, arg) in call.args.iter().enumerate() {
                words[1 + i] = entry + 8 * (7 + i as u64);
                match *arg {
                    Arg::Value(value) => words[7 + i] = value,
                    Arg::Blob(blob, offset) => words[7 + i] = place[blob.0] + offset,
                    Arg::Result(earlier) if earlier < self.first => {
                        words[7 + i] = self.outcome.results[earlier] as u64;
                    }
                    Arg::Result(earlier) => {
                        let nth = earlier - self.first;
                        words[1 + i] = base + (HEADER + nth * ENTRY + RESULT) as u64;
                    }
                }
            }
            (words[14], words[15]) = match call.expect {
                Expect::Anything => (0, 0),
                Expect::Success => (1, 0),
                Expect::Exactly(value) => (3, value),
            };
            image.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
            loaded += 1;
        }
        if loaded == 0 {
            return Err(RunError::TooLarge(
                self.program.calls[self.first].label.clone(),
            ));
        }
        self.loaded = loaded;
        image.extend(u64::MAX.to_ne_bytes());
        let mut pieces: Vec<(u64, &[u8])> = vec![(base, &image)];
        pieces.extend(
            back.iter()
                .map(|(offset, bytes)| (base + *offset as u64, bytes.as_slice())),
        );
        sys::write_memory(tid, &pieces).map_err(|source| RunError::System {
            tid,
            doing: "writing a program",
            source,
        })
    }

    /// `index` and the blobs it points to that have no place yet, targets first.
    fn collect(&self, index: usize, place: &[u64], wanted: &mut Vec<usize>) {
        if place[index] != u64::MAX || wanted.contains(&index) {
            return;
        }
        for &(_, target) in &self.program.blobs[index].pointers {
            self.collect(target.0, place, wanted);
        }
        wanted.push(index);
    }

    /// Waits for the loaded piece to end and takes its results. `new_task` hears of tasks that the calls create.
    pub fn finish(
        &mut self,
        running: crate::Running,
        new_task: &mut dyn FnMut(u32),
    ) -> Result<Stopped, RunError> {
        let tid = running.tid();
        let fail = |doing| move |source| RunError::System { tid, doing, source };
        let mut running = running;
        let stopped = loop {
            let stopped = match running.wait().map_err(fail("waiting"))? {
                Waited::Gone => return Err(RunError::Gone(tid)),
                Waited::Stopped(stopped) => stopped,
            };
            match stopped.stop() {
                Stop::Signal(signal) if signal == self.slot.signal && self.is_ours(&stopped) => {
                    break stopped;
                }
                // Job control goes its own way: a stopped process runs for its tracer all the same.
                Stop::Signal(libc::SIGSTOP) => {
                    running = stopped.resume(libc::SIGSTOP).map_err(fail("resuming"))?;
                    continue;
                }
                Stop::Signal(signal) => self.held.push(signal),
                Stop::Event(
                    libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE,
                ) => {
                    new_task(stopped.event_message().map_err(fail("reading an event"))? as u32);
                }
                Stop::Interrupt | Stop::Group(_) | Stop::Event(_) | Stop::Syscall => {}
            }
            running = stopped.resume(0).map_err(fail("resuming"))?;
        };
        self.take(&stopped)?;
        Ok(stopped)
    }

    /// Whether the signal is the stub's own: the task has just come out of its `tgkill`. The job may use the same signal.
    fn is_ours(&self, stopped: &Stopped) -> bool {
        stopped
            .registers()
            .is_ok_and(|r| r.rip == self.slot.code + after_tgkill() as u64)
    }

    fn take(&mut self, stopped: &Stopped) -> Result<(), RunError> {
        let tid = stopped.tid();
        let fail = |doing| move |source| RunError::System { tid, doing, source };
        let last = stopped.registers().map_err(fail("reading registers"))?.rbx;
        let entries = self.slot.base + HEADER as u64;
        let ended = ((last - entries) as usize / ENTRY).min(self.loaded);
        let seen = (ended + 1).min(self.loaded);
        let mut table = vec![0u8; seen * ENTRY];
        sys::read_memory(tid, entries, &mut table).map_err(fail("reading results"))?;
        for entry in table.chunks_exact(ENTRY) {
            let result =
                i64::from_ne_bytes(entry[RESULT..RESULT + 8].try_into().unwrap_or_default());
            self.outcome.results.push(result);
        }
        if ended < self.loaded {
            let index = self.first + ended;
            let call = &self.program.calls[index];
            let label = call.label.clone();
            return Err(match (self.outcome.result(index), call.expect) {
                (Err(source), _) => RunError::Call {
                    index,
                    label,
                    source,
                },
                (Ok(got), Expect::Exactly(wanted)) => RunError::Unexpected { label, got, wanted },
                (Ok(got), _) => RunError::Unexpected {
                    label,
                    got,
                    wanted: 0,
                },
            });
        }
        let mut places = vec![None; self.outcome.outputs.len()];
        for &(index, address) in &self.outputs {
            places[index] = Some(address);
            self.outcome.outputs[index].resize(self.program.blobs[index].bytes.len(), 0);
        }
        let outputs = self.outcome.outputs.iter_mut().zip(places);
        let mut pieces: Vec<(u64, &mut [u8])> = outputs
            .filter_map(|(bytes, place)| Some((place?, bytes.as_mut_slice())))
            .collect();
        sys::read_pieces(tid, &mut pieces).map_err(fail("reading results"))
    }

    /// What the calls gave, once [`Run::start`] finds nothing left to run.
    pub fn into_outcome(self) -> Outcome {
        self.outcome
    }
}

/// Runs a whole program in one stopped task.
pub fn run(
    slot: Slot,
    program: &Program,
    mut task: Stopped,
    new_task: &mut dyn FnMut(u32),
) -> Result<(Stopped, Outcome), RunError> {
    let mut run = Run::new(slot, program);
    loop {
        match run.start(task)? {
            Ok(running) => task = run.finish(running, new_task)?,
            Err(task) => return Ok((task, run.into_outcome())),
        }
    }
}
