//! Descriptors as an eBPF iterator tells them: files and directories that can be found by their names need no closer look.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{Descriptor, Directory, Regular};
use tracker::Tracker;

use super::{Table, path, proc, regular};
use crate::procfs;

/// The descriptors of a process, by number, with what the iterator tells of them.
pub(crate) fn list(pid: u32, tracker: Option<&Tracker>) -> Vec<(u32, Option<tracker::Descriptor>)> {
    match tracker.map(|tracker| tracker.descriptors(pid)) {
        Some(Ok(all)) => return all.into_iter().map(|told| (told.fd, Some(told))).collect(),
        Some(Err(error)) => tracing::warn!("{error}; reading /proc instead"),
        None => {}
    }
    let all = procfs::numbered(&format!("/proc/{pid}/fd"));
    all.into_iter().map(|fd| (fd, None)).collect()
}

/// Takes a descriptor of which all there is to know is told; `None` for others.
pub(super) fn plain(table: &mut Table, pid: u32, told: &tracker::Descriptor) -> Option<Descriptor> {
    if told.special {
        return None;
    }
    let file = match table.identities.get(&told.identity) {
        Some(&file) => file,
        None => {
            let (kind, key) = named(told, table)?;
            let id = table.add(kind, told.flags & !(libc::O_CLOEXEC as u32));
            table.identities.insert(told.identity, id);
            table.by_path.push((id, key));
            // It may be on its way through a socket too, where only a comparison tells.
            let holders = table.holders.entry(key).or_default();
            holders.push((pid, told.fd, id));
            id
        }
    };
    Some(Descriptor {
        fd: told.fd,
        file,
        close_on_exec: told.flags & libc::O_CLOEXEC as u32 != 0,
        locks: Vec::new(),
    })
}

pub(crate) fn key(told: &tracker::Descriptor) -> (u64, u64) {
    (libc::makedev(told.device.0, told.device.1), told.inode)
}

/// The path of a file or directory that is found by it.
fn name(told: &tracker::Descriptor) -> Option<&String> {
    let ordinary =
        matches!(told.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) && !path::is(told.flags);
    let name = told.path.as_ref().filter(|_| ordinary)?;
    (!proc::is_of_process(name)).then_some(name)
}

/// What is at the path of a file or directory, if that is it.
pub(crate) fn found(told: &tracker::Descriptor) -> Option<(&String, Metadata)> {
    let name = name(told)?;
    let meta = std::fs::metadata(name).ok()?;
    // Where stat(2) counts otherwise (btrfs, overlayfs), a closer look finds out.
    let same =
        (meta.dev(), meta.ino()) == key(told) && (meta.mode() ^ told.mode) & libc::S_IFMT == 0;
    same.then_some((name, meta))
}

/// A file or directory to which its path leads, with device and inode; not one that is open for writing and is to be saved.
fn named(told: &tracker::Descriptor, table: &Table) -> Option<(Kind, (u64, u64))> {
    if table.save_files
        && told.mode & libc::S_IFMT == libc::S_IFREG
        && regular::is_written(told.flags)
    {
        return None;
    }
    let known = name(told).filter(|_| table.ahead.knows(told));
    let (name, meta) = match known {
        Some(name) => (name, None),
        None => found(told).map(|(name, meta)| (name, Some(meta)))?,
    };
    let kind = if told.mode & libc::S_IFMT == libc::S_IFDIR {
        Kind::Directory(Directory {
            path: name.clone(),
            offset: told.position,
            deleted: false,
        })
    } else if let Some(meta) = meta {
        Kind::Regular(regular::record(name, told.position, &meta, Vec::new()))
    } else {
        Kind::Regular(Regular {
            path: name.clone(),
            offset: told.position,
            size: told.size,
            mode: told.mode,
            modified: told.modified,
            ..Default::default()
        })
    };
    Some((kind, key(told)))
}
