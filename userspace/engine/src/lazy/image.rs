//! The checkpoint that memory comes from, and what of it comes first.

use std::collections::BTreeSet;

use images::proto::Process;
use images::{Checkpoint, Frame, PAGE_SIZE, Where};
use memory::serve::{Memory, PageSource, Unreadable};
use memory::uffd::Userfault;
use remote::sys;

/// A checkpoint as the page server sees it.
#[derive(Debug)]
pub struct Image {
    checkpoint: Checkpoint,
    /// A copy on storage that is nearer.
    staged: Option<Checkpoint>,
    first: Vec<(u64, u64)>,
}

impl Image {
    /// Serves from this checkpoint: what threads need to go on at all, then what is `known` to be needed soon (spaces and pages), then
    /// what was written last, then the rest.
    #[must_use]
    pub fn new(checkpoint: Checkpoint, known: &[(u64, u64)]) -> Self {
        let mut first = pointed_to(&checkpoint.snapshot().processes);
        first.extend(known);
        Self {
            checkpoint,
            staged: None,
            first,
        }
    }

    /// Reads from a copy of the checkpoint as long as that can be read.
    #[must_use]
    pub fn with_copy(mut self, staged: Option<Checkpoint>) -> Self {
        self.staged = staged.filter(|staged| staged.is_copy_of(&self.checkpoint));
        self
    }
}

/// What the registers of threads lead to: their stacks before anything else.
fn pointed_to(processes: &[Process]) -> Vec<(u64, u64)> {
    let (mut stacks, mut others) = (Vec::new(), Vec::new());
    for process in processes {
        let Some(space) = process.memory.as_ref().map(|memory| memory.space) else {
            continue;
        };
        let page = |address: u64| (space, address / PAGE_SIZE as u64);
        let registers = process.threads.iter().map(|thread| &thread.registers);
        for registers in registers.filter_map(|bytes| sys::registers_from_bytes(bytes)) {
            stacks.push(page(registers.rsp));
            let r = registers;
            let pointers = [
                r.fs_base, r.rip, r.rbp, r.rdi, r.rsi, r.rax, r.rbx, r.rcx, r.rdx, r.r8, r.r9,
                r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
            ];
            others.extend(pointers.map(page));
        }
    }
    stacks.extend(others);
    stacks
}

/// Frames that are put in for one process before it runs.
const MOST_FIRST: usize = 32;

/// Puts in what the threads of `process` cannot do a step without, so that none of them waits for the page server to be there. Whatever
/// fails here is the server's to do.
pub(crate) fn put_first(
    checkpoint: &Checkpoint,
    process: &Process,
    memory: &Memory,
    uffd: &Userfault,
    protect: bool,
) {
    let mut data = Vec::new();
    let mut seen = BTreeSet::new();
    for (space, page) in pointed_to(std::slice::from_ref(process)) {
        let at = page * PAGE_SIZE as u64;
        let comes_later = memory.mappings.iter().any(|(range, _)| range.contains(&at));
        if seen.len() == MOST_FIRST || !comes_later || !seen.insert(page) {
            continue;
        }
        let Some(Where::Frame(frame)) = checkpoint.locate(space, page) else {
            continue;
        };
        if let Ok(nth) = frame.pages.binary_search(&page)
            && checkpoint.read(&frame, &mut data).is_ok()
        {
            let bytes = &data[nth * PAGE_SIZE..(nth + 1) * PAGE_SIZE];
            let _ = uffd.copy(at, bytes, protect);
        }
    }
}

impl PageSource for Image {
    type Block = Frame;

    fn locate(&self, space: u64, page: u64) -> Option<Frame> {
        match self.checkpoint.locate(space, page)? {
            Where::Frame(frame) => Some(frame),
            Where::Zero => None,
        }
    }

    fn first(&self) -> Vec<(u64, u64)> {
        self.first.clone()
    }

    fn blocks(&self, space: u64) -> Box<dyn Iterator<Item = Frame> + Send + '_> {
        Box::new(self.checkpoint.iter(space))
    }

    fn pages(&self, space: u64) -> u64 {
        (self.checkpoint.pages(space) - self.checkpoint.zero_pages(space)).len()
    }

    fn key(frame: &Frame) -> u64 {
        frame.key()
    }

    fn numbers(frame: &Frame) -> &[u64] {
        &frame.pages
    }

    fn read(&self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), Unreadable> {
        let staged = self.staged.as_ref();
        if staged.is_some_and(|staged| staged.read(frame, out).is_ok()) {
            return Ok(());
        }
        let read = self.checkpoint.read(frame, out);
        read.map_err(|error| Unreadable {
            what: error.to_string(),
            damaged: error.is_damage(),
        })
    }

    fn complain(&self, what: &str) {
        tracing::error!("{what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::proto::{AddressSpace, Thread};

    #[test]
    fn stacks_come_before_what_registers_point_to() {
        let thread = |rsp: u64, rdi: u64| {
            let mut words = [0u64; 27];
            (words[19], words[14]) = (rsp, rdi);
            let registers = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            Thread {
                registers,
                ..Thread::default()
            }
        };
        let process = Process {
            memory: Some(AddressSpace {
                space: 3,
                ..AddressSpace::default()
            }),
            threads: vec![thread(0x7123, 0x9000), thread(0x5fff, 0), Thread::default()],
            ..Process::default()
        };
        let found = pointed_to(&[process, Process::default()]);
        assert_eq!(found[..2], [(3, 7), (3, 5)]);
        assert!(found[2..].contains(&(3, 9)));
    }
}
