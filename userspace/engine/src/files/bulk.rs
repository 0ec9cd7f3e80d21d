//! Descriptors as an eBPF iterator tells them: files and directories that can be found by their names need no closer look.

use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{Descriptor, Directory};
use tracker::Tracker;

use super::{Table, path, proc, regular};
use crate::procfs;

/// The descriptors of a process, by number, with what the iterator tells of them.
pub(super) fn list(pid: u32, tracker: Option<&Tracker>) -> Vec<(u32, Option<tracker::Descriptor>)> {
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
            let (kind, key) = named(told, table.save_files)?;
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

/// A file or directory to which its path leads, with device and inode; with `save` not one that is open for writing.
fn named(told: &tracker::Descriptor, save: bool) -> Option<(Kind, (u64, u64))> {
    let kind = told.mode & libc::S_IFMT;
    let name = told.path.as_ref()?;
    let saved = save && kind == libc::S_IFREG && regular::is_written(told.flags);
    let ordinary = !saved
        && matches!(kind, libc::S_IFREG | libc::S_IFDIR)
        && !path::is(told.flags)
        && !proc::is_of_process(name);
    if !ordinary {
        return None;
    }
    let meta = std::fs::metadata(name).ok()?;
    let key = (libc::makedev(told.device.0, told.device.1), told.inode);
    // Where stat(2) counts otherwise (btrfs, overlayfs), a closer look finds out.
    if (meta.dev(), meta.ino()) != key || meta.mode() & libc::S_IFMT != kind {
        return None;
    }
    let kind = if kind == libc::S_IFDIR {
        Kind::Directory(Directory {
            path: name.clone(),
            offset: told.position,
            deleted: false,
        })
    } else {
        Kind::Regular(regular::record(name, told.position, &meta, Vec::new()))
    };
    Some((kind, key))
}
