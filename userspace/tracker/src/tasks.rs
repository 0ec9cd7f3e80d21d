//! The records of `ebpf/tasks.bpf.c`.

use crate::Error;
use crate::iterator::Reader;

/// A thread of any process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// When it was born, in nanoseconds of CLOCK_MONOTONIC.
    pub born: u64,
    /// Its id.
    pub tid: u32,
    /// Its process.
    pub pid: u32,
    /// The process that it is a child of; 0 for the first one.
    pub parent: u32,
    /// The thread of that process that made or adopted it.
    pub parent_thread: u32,
    /// Whether it has ended and is waited for.
    pub ended: bool,
}

pub(crate) fn parse(records: &[u8]) -> Result<Vec<Task>, Error> {
    let mut reader = Reader::new(records);
    let mut all = Vec::new();
    while !reader.is_empty() {
        all.push(one(&mut reader).ok_or(Error::Record { name: "tasks" })?);
    }
    Ok(all)
}

/// `struct task` of ebpf/records.h.
fn one(reader: &mut Reader<'_>) -> Option<Task> {
    let task = Task {
        born: reader.u64()?,
        tid: reader.u32()?,
        pid: reader.u32()?,
        parent: reader.u32()?,
        parent_thread: reader.u32()?,
        ended: reader.u32()? != 0,
    };
    let _padding = reader.u32()?;
    Some(task)
}
