//! The records of `ebpf/mappings.bpf.c`.

use crate::iterator::Reader;
use crate::{Error, FileIdentity, identity};

/// A mapping of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// The kernel's own, numbered as in the running kernel ([`crate::Tracker::flag_names`]).
    pub flags: u64,
    /// Bytes in a page of it, where its pages are those of hugetlbfs.
    pub block_size: u32,
    /// What is mapped.
    pub place: Place,
}

/// What a mapping shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Memory of its own, with the name it was given (prctl(2), `PR_SET_VMA`).
    Anonymous(Option<String>),
    /// The memory that brk(2) moves the end of.
    Heap,
    /// The stack of the first thread.
    Stack,
    /// The kernel's own: `[vdso]`, `[vvar]`, ...
    Special(String),
    /// A file, or an object of shared memory.
    File {
        /// The same for mappings of the same open file.
        identity: FileIdentity,
        /// Bytes into the file.
        offset: u64,
        /// Major and minor number of the file system's device, as /proc/PID/maps shows them.
        device: (u32, u32),
        /// As /proc/PID/maps shows it.
        inode: u64,
        /// The name given to shared memory (`PR_SET_VMA`).
        name: Option<String>,
    },
}

/// `NAME_SIZE` of ebpf/records.h.
const NAME_SIZE: usize = 80;

pub(crate) fn parse(records: &[u8]) -> Result<Vec<Mapping>, Error> {
    let mut reader = Reader::new(records);
    let mut all = Vec::new();
    while !reader.is_empty() {
        all.push(one(&mut reader).ok_or(Error::Record { name: "mappings" })?);
    }
    Ok(all)
}

/// `struct mapping` of ebpf/records.h.
fn one(reader: &mut Reader<'_>) -> Option<Mapping> {
    let (start, end, flags, offset) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
    let (file, inode) = (reader.u64()?, reader.u64()?);
    let (device, block_size, kind, named) =
        (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
    let name = if named == 0 {
        None
    } else {
        Some(reader.text(NAME_SIZE)?)
    };
    let place = match kind {
        0 => Place::Anonymous(name),
        1 => Place::File {
            identity: FileIdentity::new(file),
            offset,
            device: identity::device(device),
            inode,
            name,
        },
        2 => Place::Special(name.unwrap_or_default()),
        3 => Place::Heap,
        4 => Place::Stack,
        _ => return None,
    };
    Some(Mapping {
        start,
        end,
        flags,
        block_size,
        place,
    })
}
