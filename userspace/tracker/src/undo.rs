//! The records of `ebpf/undo.bpf.c`.

use crate::Error;
use crate::iterator::Reader;

/// What is undone on one System V semaphore set when a thread, and all that share its list, have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undo {
    /// Which list it is in: the same number, the same list.
    pub list: u64,
    /// Whose.
    pub tid: u32,
    /// Id of the set.
    pub set: u32,
    /// What is added to each semaphore; those behind the last one of the set mean nothing.
    pub adjustments: Vec<i16>,
}

/// `UNDO_SEMAPHORES` of ebpf/records.h: what is undone on further semaphores of a set is not told.
pub const SEMAPHORES: usize = 256;
/// `UNDO_SETS`
const SETS: usize = 64;

pub(crate) fn parse(records: &[u8]) -> Result<Vec<Undo>, Error> {
    let mut reader = Reader::new(records);
    let mut all = Vec::new();
    while !reader.is_empty() {
        all.push(one(&mut reader).ok_or(Error::Record { name: "undo" })?);
    }
    // There may be more than were told.
    let told = |tid: u32| all.iter().filter(|undo| undo.tid == tid).count();
    if all.iter().any(|undo| told(undo.tid) >= SETS) {
        return Err(Error::Record { name: "undo" });
    }
    Ok(all)
}

fn one(reader: &mut Reader<'_>) -> Option<Undo> {
    let (list, tid, set) = (reader.u64()?, reader.u32()?, reader.u32()?);
    let adjustments = reader.bytes(2 * SEMAPHORES)?.chunks_exact(2);
    Some(Undo {
        list,
        tid,
        set,
        adjustments: adjustments
            .map(|bytes| i16::from_ne_bytes([bytes[0], bytes[1]]))
            .collect(),
    })
}
