//! Files and directories, with errors that name them.

use std::cell::RefCell;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit};

use crate::{Error, Result};

/// The directory and what lies above it; an image holds all that a job held in memory, so it is for its owner only.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::io("make the directory", path))
}

/// A new file that only its owner may read.
pub(crate) fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create", path))
}

/// A regular file of an image and its length. Anything else that may lie there (a FIFO, a device, a link) is refused
/// without waiting for it.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(Error::Damaged {
                file: path.into(),
                offset: 0,
                what: "it is a symbolic link".into(),
            });
        }
        opened => opened.map_err(Error::io("open", path))?,
    };
    let metadata = file.metadata().map_err(Error::io("inspect", path))?;
    if !metadata.is_file() {
        return Err(Error::Damaged {
            file: path.into(),
            offset: 0,
            what: "it is not a regular file".into(),
        });
    }
    Ok((file, metadata.len()))
}

/// A whole file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let (file, length) = open(path)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long.
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    if bytes.len() > limit {
        let what =
            format!("it has {length} bytes, more than the {limit} that such a file may have");
        return Err(Error::Damaged {
            file: path.into(),
            offset: limit as u64,
            what,
        });
    }
    Ok(bytes)
}

/// A whole new file, on disk when this returns. One that was left there by a writer that was killed goes first.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let _ = std::fs::remove_file(path);
    let mut file = create(path)?;
    check_size(bytes.len() as u64, size_limit())
        .and_then(|()| file.write_all(bytes))
        .map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

/// Makes the names in a directory survive a loss of power.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("sync", path))
}

pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(Error::io("rename to", to))
}

/// The names in a directory that are text; others are not ours.
pub(crate) fn names(path: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", path))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", path))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// The most bytes that this process may give a file.
pub(crate) fn size_limit() -> u64 {
    // It cannot fail for a resource that exists.
    getrlimit(Resource::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _)| soft)
}

/// Fails where the kernel would, but without the SIGXFSZ that ends a process which asks it.
pub(crate) fn check_size(length: u64, limit: u64) -> io::Result<()> {
    if length > limit {
        Err(io::Error::from_raw_os_error(libc::EFBIG))
    } else {
        Ok(())
    }
}

/// Whether a file has these bytes at `offset`. What cannot be read is not the same.
pub(crate) fn has(file: &File, offset: u64, bytes: &[u8]) -> bool {
    thread_local! {
        static THERE: RefCell<Vec<u8>> = RefCell::default();
    }
    THERE.with_borrow_mut(|there| {
        there.resize(bytes.len(), 0);
        file.read_exact_at(there, offset).is_ok() && there == bytes
    })
}

/// 16 bytes that nobody has drawn before.
pub(crate) fn random_id() -> Result<[u8; 16]> {
    let path = Path::new("/dev/urandom");
    let mut id = [0; 16];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut id))
        .map_err(Error::io("read", path))?;
    Ok(id)
}
