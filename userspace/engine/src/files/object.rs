//! Files without a name whose content is kept with the image: memfds, files deleted while open, shared anonymous memory.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use images::PAGE_SIZE;
use images::proto::open_file::Kind as FileKind;
use images::proto::shared_memory::Kind;
use images::proto::{self, Process, SharedMemory};
use remote::{Expect, sys};

use super::{Held, Making, Shell, Table, Why, regular};
use crate::Refusal;
use crate::ipc::segments;
use crate::plan::Step;

// include/uapi/linux/fcntl.h, memfd.h, magic.h
const F_ADD_SEALS: i32 = 1033;
const F_GET_SEALS: i32 = 1034;
const MFD_ALLOW_SEALING: u32 = 2;
const MFD_HUGETLB: u32 = 4;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
const DELETED: &str = " (deleted)";

/// Apart from the devices of files: segments have inode numbers of their own, on the device of other shared memory.
const SEGMENTS: u64 = 1 << 63;

/// An object among those of the job, by something that is open on it and where that leads.
pub(super) fn find(table: &mut Table, file: &File, link: &str) -> Result<u32, Why> {
    add(table, file, link, None)
}

/// As [`find`]; of System V, if it is a `segment`.
pub(super) fn add(
    table: &mut Table,
    file: &File,
    link: &str,
    segment: Option<proto::Segment>,
) -> Result<u32, Why> {
    let unreadable = |error: std::io::Error| {
        let why = format!("its content cannot be read: {error}");
        (why, "checkpoint when the program has closed it".to_owned())
    };
    let meta = file.metadata().map_err(unreadable)?;
    let device = if segment.is_some() { SEGMENTS } else { 0 };
    let key = (meta.dev() | device, meta.ino());
    if let Some(&id) = table.objects_by_inode.get(&key) {
        return Ok(id);
    }
    let time = |seconds: i64, nanoseconds: i64| seconds * 1_000_000_000 + nanoseconds;
    let mut shared = SharedMemory {
        size: meta.len(),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        modified: time(meta.mtime(), meta.mtime_nsec()),
        accessed: time(meta.atime(), meta.atime_nsec()),
        ..Default::default()
    };
    let huge = nix::sys::statfs::fstatfs(file.as_fd())
        .is_ok_and(|fs| fs.filesystem_type().0 == HUGETLBFS_MAGIC);
    if huge {
        shared.huge_page_size = meta.blksize();
    }
    let path = link.strip_suffix(DELETED).unwrap_or(link);
    if segment.is_some() {
        shared.set_kind(Kind::SystemV);
        path.clone_into(&mut shared.name);
        shared.segment = segment;
    } else if let Some(name) = path.strip_prefix("/memfd:") {
        shared.set_kind(Kind::Memfd);
        name.clone_into(&mut shared.name);
        shared.seals = sys::fcntl(file, F_GET_SEALS, 0).map_err(unreadable)? as u32;
    } else if matches!(path, "/dev/zero" | "/anon_hugepage") || link.starts_with("[anon_shmem:") {
        shared.set_kind(Kind::Anonymous);
    } else if meta.nlink() == 0 && !huge && on_device(path, meta.dev()) {
        shared.set_kind(Kind::File);
        path.clone_into(&mut shared.name);
    } else if table.save_files && !huge && on_device(path, meta.dev()) {
        shared.set_kind(Kind::Saved);
        path.clone_into(&mut shared.name);
    } else if meta.nlink() == 1
        && !huge
        && let Some(name) = name_of(link, &meta)
    {
        shared.set_kind(Kind::Named);
        shared.name = name;
        shared.inode = meta.ino();
        shared.born = born(&meta);
    } else {
        return Err(regular::lost(link));
    }
    // Reading is by another open file than the job's, which may not be readable or be at an offset.
    // The time of the last access stays the job's, where we may say so.
    let fd = std::os::fd::AsRawFd::as_raw_fd(file);
    let path = format!("/proc/self/fd/{fd}");
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NOATIME);
    let own = options.open(&path).or_else(|_| File::open(&path));
    let own = own.map_err(unreadable)?;
    shared.id = table.shared.len() as u32 + 1;
    shared.space = table.spaces.of_object(key);
    table.objects.push((shared.space, own.into(), shared.size));
    table.objects_by_inode.insert(key, shared.id);
    table.shared.push(shared);
    Ok(table.shared.len() as u32)
}

/// Whether a file is open for writing, and has content of its own.
pub(super) fn can_be_saved(held: &Held) -> bool {
    let own = !["/proc/", "/sys/"]
        .iter()
        .any(|top| held.link.starts_with(top));
    own && regular::is_written(held.flags)
}

/// What saved files hold now is kept beside them.
pub(crate) fn kept_beside(snapshot: &proto::Snapshot) -> impl Iterator<Item = Step> {
    let saved = snapshot
        .shared
        .iter()
        .filter(|shared| shared.kind() == Kind::Saved);
    saved.map(|shared| Step::KeepBeside {
        shared: shared.clone(),
    })
}

/// Keeps the content of a saved file that has changed since beside it: `NAME.ckptd-before.N`.
pub(crate) fn keep_beside(shared: &SharedMemory) -> std::io::Result<()> {
    let Ok(meta) = std::fs::metadata(&shared.name) else {
        return Ok(());
    };
    let modified = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    if (meta.len(), modified) == (shared.size, shared.modified) {
        return Ok(());
    }
    let (_, mut beside) = regular::beside(&shared.name, "before")?;
    std::io::copy(&mut File::open(&shared.name)?, &mut beside)?;
    beside.sync_all()
}

/// Nanoseconds since the epoch; 0 where the file system does not know.
fn born(meta: &std::fs::Metadata) -> i64 {
    let since = meta.created().ok();
    let since = since.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_nanos() as i64)
}

/// Whether a mapped file lives in memory only, so that its content is part of the job's.
pub(super) fn is_memory(pid: u32, area: &crate::areas::Area) -> bool {
    let path = format!("/proc/{pid}/map_files/{:x}-{:x}", area.start, area.end);
    nix::sys::statfs::statfs(path.as_str())
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

/// Files that turned out to be objects when others had already been met as plain files.
pub(super) fn finish_capture(table: &mut Table, pending: &[(u32, Held)]) {
    let held = pending.iter().map(|(id, held)| {
        let key = (held.meta.dev(), held.meta.ino());
        (*id, key)
    });
    let all: Vec<_> = held.chain(table.by_path.iter().copied()).collect();
    for (id, key) in all {
        let Some(&object) = table.objects_by_inode.get(&key) else {
            continue;
        };
        let kind = &mut table.files[id as usize - 1].kind;
        if let Some(FileKind::Regular(regular)) = kind {
            let offset = regular.offset;
            *kind = Some(FileKind::Object(proto::Object { object, offset }));
        }
    }
}

pub(super) fn capture(table: &mut Table, held: &Held) -> Result<FileKind, Why> {
    let file = held.file.try_clone().map_err(|error| {
        let why = format!("it cannot be duplicated: {error}");
        (why, "try again".to_owned())
    })?;
    Ok(FileKind::Object(proto::Object {
        object: find(table, &file.into(), &held.link)?,
        offset: held.number("pos").unwrap_or(0),
    }))
}

/// The nearest directory above `path` that there is.
fn directory(path: &str) -> Option<&Path> {
    Path::new(path).ancestors().skip(1).find(|at| at.is_dir())
}

fn on_device(path: &str, device: u64) -> bool {
    let meta = directory(path).and_then(|at| std::fs::metadata(at).ok());
    meta.is_some_and(|meta| meta.dev() == device)
}

/// The name of a file that has one. It may be another than it was opened by: sem_open(3) makes a file, links it to its name, and unlinks
/// the first one.
fn name_of(link: &str, meta: &std::fs::Metadata) -> Option<String> {
    let Some(gone) = link.strip_suffix(DELETED) else {
        return on_device(link, meta.dev()).then(|| link.to_owned());
    };
    let entries = Path::new(gone).parent()?.read_dir().ok()?.flatten();
    let mut same = entries.filter(|entry| {
        let found = std::fs::symlink_metadata(entry.path());
        entry.ino() == meta.ino() && found.is_ok_and(|found| found.dev() == meta.dev())
    });
    Some(same.next()?.path().to_str()?.to_owned())
}

/// Why a deleted file cannot be made on this host.
pub(crate) fn check(shared: &SharedMemory, root: u32) -> Option<Refusal> {
    let refusal = |why: String, advice: &str| {
        Some(Refusal {
            pid: root,
            what: shared.name.clone(),
            why,
            advice: advice.to_owned(),
        })
    };
    match shared.kind() {
        Kind::File => {}
        Kind::Named => {
            let above = Path::new(&shared.name).parent()?;
            if !above.is_dir() {
                let why = format!("there is no directory {}", above.display());
                return refusal(why, "make it");
            }
            // The job's own, from before: what is in it belongs to the memory of processes that are gone.
            let now = std::fs::symlink_metadata(&shared.name).ok()?;
            if (now.ino(), born(&now)) == (shared.inode, shared.born) {
                return None;
            }
            let why = "another file has taken this name, which the job's shared memory had";
            return refusal(why.to_owned(), "move that file away");
        }
        Kind::Saved => {
            let above = Path::new(&shared.name).parent()?;
            if !above.is_dir() {
                let why = format!(
                    "there is no directory {} to put the file back",
                    above.display()
                );
                return refusal(why, "make it");
            }
            return None;
        }
        Kind::Anonymous | Kind::Memfd | Kind::SystemV => return None,
    }
    let at = directory(&shared.name)?;
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_TMPFILE);
    let error = options.open(at).err()?;
    let why = format!(
        "it was deleted, and no file without a name can be made in {}: {error}",
        at.display()
    );
    refusal(
        why,
        "give that directory's file system room and write access",
    )
}

/// The process that has made a segment; else the first that has the object mapped or open, and of a segment any.
pub(crate) fn maker<'a>(
    processes: &'a [Process],
    files: &[proto::OpenFile],
    (id, segment): (u32, Option<&proto::Segment>),
) -> Option<&'a Process> {
    let alive = |process: &&Process| process.state() != proto::process::State::Zombie;
    if let Some(segment) = segment {
        let mut all = processes.iter().filter(alive);
        let made = all.clone().find(|process| process.pid == segment.creator);
        return made
            .or_else(|| holder(processes, files, id))
            .or_else(|| all.next());
    }
    holder(processes, files, id)
}

fn holder<'a>(processes: &'a [Process], files: &[proto::OpenFile], id: u32) -> Option<&'a Process> {
    use proto::mapping::Kind as Mapped;
    let open = |file: u32| {
        let file = files.get((file as usize).wrapping_sub(1));
        matches!(file.and_then(|file| file.kind.as_ref()), Some(FileKind::Object(object)) if object.object == id)
    };
    processes.iter().find(|process| {
        let memory = process.memory.as_ref();
        let maps = |m: &proto::Mapping| match m.kind() {
            Mapped::AnonymousShared => m.file == id,
            Mapped::FilePrivate | Mapped::FileShared => open(m.file),
            _ => false,
        };
        let layout = memory.and_then(|memory| memory.layout.as_ref());
        memory.is_some_and(|memory| memory.mappings.iter().any(maps))
            || layout.is_some_and(|layout| open(layout.exe))
            || process.descriptors.iter().any(|d| open(d.file))
    })
}

/// Makes an object, empty. `at`: free addresses.
pub(crate) fn make(shell: &mut Shell, shared: &SharedMemory, at: u64, place: u32) {
    let fd = match shared.kind() {
        Kind::Anonymous => return make_anonymous(shell, shared, at, place),
        // With its id.
        Kind::SystemV => return,
        Kind::Memfd => {
            let name = shell.program.string(&shared.name);
            let mut flags = MFD_ALLOW_SEALING;
            if shared.huge_page_size != 0 {
                flags |=
                    MFD_HUGETLB | shared.huge_page_size.trailing_zeros() << libc::MAP_HUGE_SHIFT;
            }
            let label = format!("make memfd {}", shared.name);
            shell.open(libc::SYS_memfd_create, &[name.into(), flags.into()], label)
        }
        Kind::File => {
            let at = directory(&shared.name).unwrap_or(Path::new("/"));
            let name = shell.program.string(&at.to_string_lossy());
            let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
            let mode = 0o600;
            let args = [
                libc::AT_FDCWD.into(),
                name.into(),
                flags.into(),
                mode.into(),
            ];
            let label = format!("make a file in place of {}{DELETED}", shared.name);
            shell.open(libc::SYS_openat, &args, label)
        }
        Kind::Named => {
            let name = shell.program.string(&shared.name);
            // Whoever has the old one open keeps it.
            let label = format!("delete the old {}, if it is there", shared.name);
            shell
                .program
                .try_call(libc::SYS_unlink, &[name.into()], label);
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_CLOEXEC;
            let mode = 0o600;
            let args = [
                libc::AT_FDCWD.into(),
                name.into(),
                flags.into(),
                mode.into(),
            ];
            let label = format!("make {}", shared.name);
            shell.open(libc::SYS_openat, &args, label)
        }
        Kind::Saved => {
            let name = shell.program.string(&shared.name);
            let flags = libc::O_CREAT | libc::O_TRUNC | libc::O_RDWR | libc::O_CLOEXEC;
            let args = [
                libc::AT_FDCWD.into(),
                name.into(),
                flags.into(),
                shared.mode.into(),
            ];
            let label = format!("put back {}", shared.name);
            shell.open(libc::SYS_openat, &args, label)
        }
    };
    let label = format!("make it {} bytes long", shared.size);
    shell
        .program
        .must(libc::SYS_ftruncate, &[fd.into(), shared.size.into()], label);
    shell.rename(fd, place, true);
}

/// Shared anonymous memory has no name to open it by, but for the process that maps it: /proc/self/map_files.
fn make_anonymous(shell: &mut Shell, shared: &SharedMemory, at: u64, place: u32) {
    let mut flags =
        libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
    if shared.huge_page_size != 0 {
        flags |= libc::MAP_HUGETLB
            | (shared.huge_page_size.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT;
    }
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let args = [
        at.into(),
        shared.size.into(),
        prot.into(),
        flags.into(),
        u64::MAX.into(),
        0.into(),
    ];
    shell.program.call(
        libc::SYS_mmap,
        &args,
        Expect::Exactly(at),
        format!("make {} bytes of shared memory", shared.size),
    );
    let end = at + shared.size.next_multiple_of(PAGE_SIZE as u64);
    let fd = shell.open_path(
        &format!("/proc/self/map_files/{at:x}-{end:x}"),
        libc::O_RDWR as u32,
    );
    shell.program.must(
        libc::SYS_munmap,
        &[at.into(), (end - at).into()],
        "unmap it",
    );
    shell.rename(fd, place, true);
}

/// Another open file on an object.
pub(crate) fn reopen(shell: &mut Shell, making: &Making<'_>, id: u32, me: u32, flags: u32) -> u32 {
    let maker = making.object_maker(id);
    let place = making.object_place(id);
    let source = if maker == me {
        place
    } else {
        shell.fetch(maker, place)
    };
    let fd = shell.open_path(&format!("/proc/self/fd/{source}"), flags);
    if maker != me {
        shell.close(source);
    }
    fd
}

pub(super) fn open(
    shell: &mut Shell,
    making: &Making<'_>,
    object: &proto::Object,
    file: &proto::OpenFile,
) -> u32 {
    let me = making.maker(file.id).map_or(0, |maker| maker.pid);
    let flags = regular::reopening(file.flags) & !(libc::O_DIRECTORY as u32);
    let fd = reopen(shell, making, object.object, me, flags);
    if object.offset != 0 {
        let args = [fd.into(), object.offset.into(), libc::SEEK_SET.into()];
        let label = format!("go to offset {}", object.offset);
        shell.program.must(libc::SYS_lseek, &args, label);
    }
    fd
}

/// Gives an object whose content is there its exact size, owner, times and seals. Nobody writes to it through `place` afterwards.
pub(crate) fn finish(shell: &mut Shell, shared: &SharedMemory, place: u32) {
    if shared.kind() == Kind::Anonymous {
        return;
    }
    if !shared.size.is_multiple_of(PAGE_SIZE as u64) {
        // Content comes in whole pages.
        let args = [place.into(), shared.size.into()];
        let label = format!("cut it to {} bytes", shared.size);
        shell.program.must(libc::SYS_ftruncate, &args, label);
    }
    if shared.kind() == Kind::SystemV {
        return segments::finish(shell, shared);
    }
    let times = |shell: &mut Shell| {
        let split = |time: i64| {
            let second = 1_000_000_000;
            [
                time.div_euclid(second) as u64,
                time.rem_euclid(second) as u64,
            ]
        };
        let times = [split(shared.accessed), split(shared.modified)].concat();
        let times = shell.program.words(&times);
        let args = [place.into(), 0.into(), times.into(), 0.into()];
        // Only the owner of a file may, and a saved one may be somebody else's.
        shell
            .program
            .try_call(libc::SYS_utimensat, &args, "set its times");
    };
    if shared.kind() == Kind::Saved {
        times(shell);
        return lock_out(shell, place);
    }
    if (shared.uid, shared.gid) != (u32::MAX, u32::MAX) {
        let args = [place.into(), shared.uid.into(), shared.gid.into()];
        let label = format!("give it to user {}, group {}", shared.uid, shared.gid);
        shell.program.must(libc::SYS_fchown, &args, label);
    }
    let args = [place.into(), shared.mode.into()];
    shell
        .program
        .must(libc::SYS_fchmod, &args, "set its permissions");
    times(shell);
    if shared.seals != 0 {
        let seals = u64::from(shared.seals);
        shell.fcntl(place, F_ADD_SEALS, seals, "seal it");
    }
    lock_out(shell, place);
}

/// What somebody may write to cannot be executed (ETXTBSY).
fn lock_out(shell: &mut Shell, place: u32) {
    let path = format!("/proc/self/fd/{place}");
    let fd = shell.open_path(&path, libc::O_RDONLY as u32);
    shell.rename_over(fd, place);
}
