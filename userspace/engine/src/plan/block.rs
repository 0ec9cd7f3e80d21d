//! Room that the job leaves free: addresses and descriptors.

use std::collections::BTreeSet;

use images::PAGE_SIZE;
use images::proto::{Process, Snapshot};

use crate::host::Host;
use crate::seccomp;

/// The addresses that are ours while a process is built; the job uses them in none of its processes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Block {
    pub(crate) base: u64,
    /// The stub and the leader's programs.
    pub(crate) leader: usize,
    /// Programs of each further thread.
    pub(crate) thread: usize,
    pub(crate) threads: usize,
    /// The vdso and what belongs to it waits here.
    pub(crate) staging: u64,
    pub(crate) vdso: u64,
    /// Free for mapping a shared memory object, or for a vdso that cannot go to its old place.
    pub(crate) spare: u64,
}

impl Block {
    /// Bytes of the mapping that holds stub and programs.
    pub(crate) fn length(&self) -> usize {
        self.leader + self.thread * self.threads
    }
}

const LEADER_ROOM: usize = 512 << 10;
const THREAD_ROOM: usize = 16 << 10;
const LOWEST: u64 = 1 << 32;
const HIGHEST: u64 = 0x7000_0000_0000;

/// Finds addresses that no process of the job uses.
pub(super) fn find_block(snapshot: &Snapshot, host: &Host) -> Option<Block> {
    let mut used: Vec<(u64, u64)> = snapshot
        .processes
        .iter()
        .filter_map(|p| p.memory.as_ref())
        .flat_map(|m| m.mappings.iter().map(|m| (m.start, m.end)))
        .collect();
    used.sort_unstable();
    let threads = snapshot
        .processes
        .iter()
        .map(|p| p.threads.len())
        .max()
        .unwrap_or(1)
        - 1;
    let vdso: u64 = host.vdso_pieces.iter().map(|(length, _)| length).sum();
    let mut block = Block {
        leader: LEADER_ROOM,
        thread: (THREAD_ROOM + seccomp::largest(&snapshot.processes, &snapshot.filters))
            .next_multiple_of(PAGE_SIZE),
        threads,
        vdso,
        ..Default::default()
    };
    let largest = snapshot.shared.iter().map(|s| s.size).max().unwrap_or(0);
    // Shared memory may be mapped by huge pages.
    let spare = (largest.max(vdso) + (1 << 30)).next_multiple_of(1 << 21);
    let needed = block.length() as u64 + vdso + spare + (4 << 20);
    let mut at = LOWEST;
    for (start, end) in used.iter().copied().chain([(HIGHEST, u64::MAX)]) {
        if start > at && start - at > needed + (2 << 20) {
            block.base = (at + (1 << 20)).next_multiple_of(1 << 21);
            block.staging = block.base + block.length() as u64;
            block.spare = (block.staging + vdso).next_multiple_of(1 << 30);
            if block.spare + largest.max(vdso) < start {
                return Some(block);
            }
        }
        at = at.max(end.min(HIGHEST));
    }
    None
}

/// The lowest run of so many descriptors that no process of the job uses.
pub(super) fn free_descriptors(processes: &[&Process], count: u32) -> u32 {
    let used: BTreeSet<u32> = processes
        .iter()
        .flat_map(|p| p.descriptors.iter().map(|d| d.fd))
        .chain(0..3)
        .collect();
    let mut free = 0;
    for fd in used {
        if fd - free >= count {
            break;
        }
        free = fd + 1;
    }
    free
}
