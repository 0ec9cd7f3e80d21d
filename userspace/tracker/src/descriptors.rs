//! The records of `ebpf/descriptors.bpf.c`.

use crate::iterator::Reader;
use crate::{Error, FileIdentity, identity};

/// A descriptor of a process, and the open file it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub fd: u32,
    /// The same for descriptors of the same open file, also in other processes.
    pub identity: FileIdentity,
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// Of the file.
    pub inode: u64,
    /// Kind and permissions, as in stat(2).
    pub mode: u32,
    /// As in fcntl(F_GETFL), with `O_CLOEXEC`.
    pub flags: u32,
    /// In bytes, where the kind of file has one.
    pub position: u64,
    /// Of the file, in bytes.
    pub size: u64,
    /// When the file's content was changed last, in nanoseconds since the epoch.
    pub modified: u64,
    /// How many names the file has.
    pub links: u32,
    /// Where it leads, as /proc/PID/fd shows it; `None` for long ones.
    pub path: Option<String>,
    /// Whether there may be more to know: the file has or had locks, or this open file sends signals.
    pub special: bool,
}

pub(crate) fn parse(records: &[u8]) -> Result<Vec<Descriptor>, Error> {
    let mut reader = Reader::new(records);
    let mut all = Vec::new();
    while !reader.is_empty() {
        all.push(one(&mut reader).ok_or(Error::Record {
            name: "descriptors",
        })?);
    }
    Ok(all)
}

/// `struct descriptor` of ebpf/records.h.
fn one(reader: &mut Reader<'_>) -> Option<Descriptor> {
    let (file, inode, position) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let (size, modified) = (reader.u64()?, reader.u64()?);
    let (fd, device, mode, flags) = (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
    let (special, path_size) = (reader.u32()?, reader.u32()?);
    let (links, _padding) = (reader.u32()?, reader.u32()?);
    let path = match path_size {
        0 => None,
        size => Some(reader.text(size as usize)?),
    };
    Some(Descriptor {
        fd,
        identity: FileIdentity::new(file),
        device: identity::device(device),
        inode,
        mode,
        flags,
        position,
        size,
        modified,
        links,
        path,
        special: special != 0,
    })
}
