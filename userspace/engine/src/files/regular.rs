//! Regular files and directories: found again by their path, at the offset they had.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use images::proto::open_file::Kind;
use images::proto::{Directory, Regular};

use super::{Held, STATUS_FLAGS, Shell, Why};
use crate::maps;

/// Whether `path` leads to that very file.
fn leads_to(path: &str, device: u64, inode: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (device, inode))
}

pub(super) fn lost(path: &str) -> Why {
    let why = match path.strip_suffix(" (deleted)") {
        Some(_) if path.starts_with("/SYSV") => {
            "System V shared memory is not supported yet".to_owned()
        }
        Some(path) => {
            format!("{path} has been deleted or replaced, so that nothing could open it again")
        }
        None => format!("{path} does not lead to it (another mount or namespace?)"),
    };
    (
        why,
        "checkpoint when the program has closed it, or keep the file in place".to_owned(),
    )
}

/// The file of a mapping, or the executed one.
pub(crate) fn mapped(pid: u32, path: &str, device: u64, inode: u64) -> Result<Regular, Why> {
    let Ok(meta) = std::fs::metadata(path) else {
        return Err(lost(path));
    };
    // btrfs and overlayfs show one device in /proc and another in stat; the inode must agree all the same.
    if meta.ino() != inode || (meta.dev() != device && meta.mode() & libc::S_IFMT != libc::S_IFREG)
    {
        return Err(lost(path));
    }
    if meta.mode() & libc::S_IFMT != libc::S_IFREG {
        let advice = format!("checkpoint when process {pid} has unmapped it");
        return Err((
            format!("{path} is not a regular file; memory of devices cannot be restored"),
            advice,
        ));
    }
    let build_id = File::open(path)
        .map(|file| maps::build_id(&file))
        .unwrap_or_default();
    Ok(record(path, 0, &meta, build_id))
}

pub(super) fn record(
    path: &str,
    offset: u64,
    meta: &std::fs::Metadata,
    build_id: Vec<u8>,
) -> Regular {
    Regular {
        path: path.to_owned(),
        offset,
        size: meta.size(),
        mode: meta.mode(),
        modified: (meta.mtime() as u64)
            .wrapping_mul(1_000_000_000)
            .wrapping_add(meta.mtime_nsec() as u64),
        text: !build_id.is_empty(),
        build_id,
    }
}

pub(crate) fn capture(held: &Held) -> Result<Kind, Why> {
    // /proc makes inodes as it pleases.
    if !super::proc::is_of_process(&held.link)
        && !leads_to(&held.link, held.meta.dev(), held.meta.ino())
    {
        return Err(lost(&held.link));
    }
    Ok(Kind::Regular(record(
        &held.link,
        held.number("pos").unwrap_or(0),
        &held.meta,
        Vec::new(),
    )))
}

pub(crate) fn directory(held: &Held) -> Result<Kind, Why> {
    // Nothing else about a directory sends signals.
    if super::owner(held).is_some_and(|owner| owner.pid != 0) {
        let why = "somebody gets signals about changes in it (F_NOTIFY), which is not supported";
        return Err((why.to_owned(), "use inotify(7)".to_owned()));
    }
    let deleted = held.meta.nlink() == 0;
    if !deleted
        && !super::proc::is_of_process(&held.link)
        && !leads_to(&held.link, held.meta.dev(), held.meta.ino())
    {
        return Err(lost(&held.link));
    }
    Ok(Kind::Directory(Directory {
        path: held.link.clone(),
        offset: held.number("pos").unwrap_or(0),
        deleted,
    }))
}

/// Whether a file open with these flags may be written to.
pub(crate) fn is_written(flags: u32) -> bool {
    flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
}

/// Flags with which to open anew: nothing that creates or cuts.
pub(super) fn reopening(flags: u32) -> u32 {
    let kept = (libc::O_ACCMODE
        | libc::O_SYNC
        | libc::O_DSYNC
        | libc::O_LARGEFILE
        | libc::O_PATH
        | libc::O_DIRECTORY) as u32;
    flags & (kept | STATUS_FLAGS)
}

pub(crate) fn open(shell: &mut Shell, regular: &Regular, flags: u32) -> u32 {
    at(shell, &regular.path, flags, regular.offset)
}

pub(crate) fn open_directory(shell: &mut Shell, directory: &Directory, flags: u32) -> u32 {
    let flags = flags | libc::O_DIRECTORY as u32;
    if !directory.deleted {
        return at(shell, &directory.path, flags, directory.offset);
    }
    let mut fd = 0;
    super::directory::make(shell, &directory.path, |shell, path| {
        fd = at(shell, path, flags, directory.offset);
    });
    fd
}

fn at(shell: &mut Shell, path: &str, flags: u32, offset: u64) -> u32 {
    let fd = shell.open_path(path, reopening(flags));
    if offset != 0 && flags & libc::O_PATH as u32 == 0 {
        let args = [fd.into(), offset.into(), libc::SEEK_SET.into()];
        shell
            .program
            .must(libc::SYS_lseek, &args, format!("go to offset {offset}"));
    }
    fd
}

/// Whether the file is as it was; `Err` says what is different.
pub(crate) enum Changed {
    /// It cannot be found.
    Missing(std::io::Error),
    /// Another executable or library stands in its place.
    Text,
    /// It has more bytes than it had.
    Longer(u64),
    /// It has fewer: what the job wrote is lost.
    Shorter(u64),
}

pub(crate) fn changed(regular: &Regular) -> Option<Changed> {
    let meta = match std::fs::metadata(&regular.path) {
        Ok(meta) => meta,
        Err(error) => return Some(Changed::Missing(error)),
    };
    if regular.text {
        let build_id = File::open(&regular.path)
            .map(|file| maps::build_id(&file))
            .unwrap_or_default();
        return (build_id != regular.build_id || meta.len() != regular.size)
            .then_some(Changed::Text);
    }
    match meta.len().cmp(&regular.size) {
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(Changed::Longer(meta.len())),
        std::cmp::Ordering::Less => Some(Changed::Shorter(meta.len())),
    }
}

/// Cuts a file back to the size it had. What is cut off goes into a new file beside it first, named after it: `NAME.ckptd-tail.N`.
pub(crate) fn cut_back(regular: &Regular) -> std::io::Result<String> {
    let file = File::options().read(true).write(true).open(&regular.path)?;
    let length = file.metadata()?.len();
    let (name, tail) = beside(&regular.path, "tail")?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = regular.size;
    while at < length {
        let n = buffer.len().min((length - at) as usize);
        file.read_exact_at(&mut buffer[..n], at)?;
        tail.write_all_at(&buffer[..n], at - regular.size)?;
        at += n as u64;
    }
    tail.sync_all()?;
    file.set_len(regular.size)?;
    Ok(name)
}

/// A new file beside another, named after it.
pub(super) fn beside(path: &str, what: &str) -> std::io::Result<(String, File)> {
    let mut nth = 1;
    loop {
        let name = format!("{path}.ckptd-{what}.{nth}");
        match File::options().write(true).create_new(true).open(&name) {
            Ok(file) => return Ok((name, file)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => nth += 1,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, b"before|after").unwrap();
        let regular = Regular {
            path: path.to_str().unwrap().to_owned(),
            size: 7,
            ..Default::default()
        };
        assert!(matches!(changed(&regular), Some(Changed::Longer(12))));
        let tail = cut_back(&regular).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"before|");
        assert_eq!(std::fs::read(tail).unwrap(), b"after");
        assert!(changed(&regular).is_none());
    }
}
