//! Storage that is slow, hangs, or lies: a file of one's own, in whose place a FUSE filesystem stands.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen,
    Request,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What happens to those who read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing, but that each read takes so many milliseconds.
    Slow(u64),
    /// EIO.
    Fails,
    /// They wait until there is other trouble.
    Hangs,
    /// The file ends before what they want.
    Short,
    /// They get other bytes.
    Lies,
}

/// A file that reads as it did, but for the trouble. Dropping it gives the file back.
#[derive(Debug)]
pub struct Storage {
    state: Arc<(Mutex<Trouble>, Condvar)>,
    path: PathBuf,
    folder: PathBuf,
    session: Option<BackgroundSession>,
}

impl Storage {
    /// Stands in for the file at `path`; `None` where the machine cannot.
    ///
    /// # Panics
    /// When the file cannot be read.
    #[must_use]
    pub fn over(path: &Path, trouble: Trouble) -> Option<Self> {
        let state = Arc::new((Mutex::new(trouble), Condvar::new()));
        let served = Served {
            file: File::open(path).expect("the file"),
            state: Arc::clone(&state),
        };
        let folder = path.with_extension("fuse");
        fs::create_dir(&folder).expect("a folder to mount on");
        let mut config = Config::default();
        config.n_threads = Some(4);
        let session = match fuser::spawn_mount(served, &folder, &config) {
            Ok(session) => session,
            Err(error) => {
                let _ = fs::remove_dir(&folder);
                crate::skip("storage in trouble", &format!("FUSE: {error}"));
                return None;
            }
        };
        let none: Option<&str> = None;
        let bind = mount(
            Some(&folder.join("file")),
            path,
            none,
            MsFlags::MS_BIND,
            none,
        );
        bind.expect("a bind mount");
        Some(Self {
            state,
            path: path.to_owned(),
            folder,
            session: Some(session),
        })
    }

    /// Makes other trouble.
    ///
    /// # Panics
    /// Never.
    pub fn set(&self, trouble: Trouble) {
        *self.state.0.lock().expect("the state") = trouble;
        self.state.1.notify_all();
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.set(Trouble::Fails);
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        drop(self.session.take());
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The filesystem: one file.
struct Served {
    file: File,
    state: Arc<(Mutex<Trouble>, Condvar)>,
}

const FILE: u64 = 2;
/// How long the kernel may believe us.
const TTL: Duration = Duration::from_secs(1);

impl Served {
    fn attributes(&self, ino: u64) -> FileAttr {
        let is_file = ino == FILE;
        let size = if is_file {
            self.file.metadata().map_or(0, |meta| meta.size())
        } else {
            0
        };
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "file" {
            reply.entry(&TTL, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(u64::from(ino)));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // So that the page cache does not answer for us.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let trouble = self.state.0.lock().expect("the state");
        let hangs = |trouble: &mut Trouble| *trouble == Trouble::Hangs;
        let trouble = *self.state.1.wait_while(trouble, hangs).expect("the state");
        let mut bytes = vec![0; size as usize];
        let mut read = self.file.read_at(&mut bytes, offset).unwrap_or(0);
        match trouble {
            Trouble::Slow(milliseconds) => {
                std::thread::sleep(Duration::from_millis(milliseconds));
            }
            Trouble::Fails => return reply.error(Errno::EIO),
            Trouble::Short => read = 0,
            Trouble::Lies => bytes[read / 2] ^= 0x10,
            Trouble::Hangs => {}
        }
        reply.data(&bytes[..read]);
    }
}
