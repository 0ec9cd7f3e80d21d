//! Descriptors that only name something (O_PATH), whatever it is.

use std::os::unix::fs::MetadataExt;

use images::proto::Path;
use images::proto::open_file::Kind;

use super::{Held, Shell, Why, directory, regular};

pub(crate) fn is(flags: u32) -> bool {
    flags & libc::O_PATH as u32 != 0
}

pub(crate) fn capture(held: &Held) -> Result<Kind, Why> {
    let same =
        |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == (held.meta.dev(), held.meta.ino());
    let deleted = held.meta.is_dir() && held.meta.nlink() == 0;
    let of_process = super::proc::is_of_process(&held.link);
    if !deleted && !of_process && !std::fs::symlink_metadata(&held.link).is_ok_and(same) {
        return Err(regular::lost(&held.link));
    }
    Ok(Kind::Path(Path {
        path: held.link.clone(),
        deleted,
    }))
}

pub(crate) fn open(shell: &mut Shell, path: &Path, flags: u32) -> u32 {
    let kept = flags & libc::O_DIRECTORY as u32;
    // What it names may be a symbolic link itself.
    let flags = (libc::O_PATH | libc::O_NOFOLLOW) as u32 | kept;
    if !path.deleted {
        return shell.open_path(&path.path, flags);
    }
    let mut fd = 0;
    directory::make(shell, &path.path, |shell, path| {
        fd = shell.open_path(path, flags);
    });
    fd
}
