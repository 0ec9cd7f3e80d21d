//! All open files of a job while it is captured.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{Descriptor, OpenFile, SeccompFilter, SharedMemory};
use remote::sys;
use tracker::{FileIdentity, Tracker};

use super::{Held, Why, hold, hold_told, inode, owner};
use super::{
    bulk, datagram, device, epoll, eventfd, inet, inotify, lock, object, outer, path, pidfd, pipe,
    posix_queue, proc, pty, regular, signalfd, timerfd, unix,
};
use crate::ahead::Ahead;
use crate::areas::Area;
use crate::freeze::failed;
use crate::ipc::segments;
use crate::maps;
use crate::{CheckpointError, Refusal, TcpPolicy};

/// Process, descriptor and the id given to the open file behind it.
pub(super) type Holder = (u32, u32, u32);

/// All open files of a job while it is captured.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) files: Vec<OpenFile>,
    pub(crate) shared: Vec<SharedMemory>,
    /// Descriptors of shared memory objects, to read them by.
    pub(crate) objects: Vec<(u64, OwnedFd, u64)>,
    /// First holders of each open file with a device and inode in common, for kcmp.
    pub(super) holders: HashMap<(u64, u64), Vec<Holder>>,
    mapped: HashMap<(String, bool), u32>,
    pub(super) objects_by_inode: HashMap<(u64, u64), u32>,
    /// Files that are looked at again when all descriptors are known.
    pub(crate) pending: Vec<(u32, Held)>,
    pub(crate) ahead: Ahead,
    pub(crate) outer: outer::Outer,
    /// The content of files that are open for writing is part of the image.
    pub(crate) save_files: bool,
    /// What to do with connections that lead out of the job, and whether it is to be killed.
    pub(crate) tcp: (TcpPolicy, bool),
    /// The packets of those are held off.
    pub(crate) held_off: Option<inet::filter::Filter>,
    pub(crate) filters: Vec<SeccompFilter>,
    pub(crate) spaces: crate::track::SpaceNumbers,
    /// Processes of the job: their pids as we see them, and inside the job.
    pub(crate) members: HashMap<u32, u32>,
    /// Open files as the kernel tells them apart.
    pub(super) identities: HashMap<FileIdentity, u32>,
    /// Files that are found by their paths alone, with device and inode.
    pub(super) by_path: Vec<(u32, (u64, u64))>,
}

/// Descriptors that nothing could be said against, with the open files behind them.
#[derive(Debug, Default)]
pub(crate) struct Harmless(HashSet<(u32, u32, FileIdentity, u64)>);

impl Harmless {
    /// Forgets those of other processes than these.
    pub(crate) fn retain(&mut self, pids: &[u32]) {
        self.0.retain(|(pid, ..)| pids.contains(pid));
    }
}

/// A pipe of which /proc would tell nothing more.
fn is_simple(told: &tracker::Descriptor) -> bool {
    told.mode & libc::S_IFMT == libc::S_IFIFO && !told.special && told.path.is_some()
}

/// Files, directories and pipes.
fn is_plain(mode: u32) -> bool {
    matches!(
        mode & libc::S_IFMT,
        libc::S_IFREG | libc::S_IFDIR | libc::S_IFIFO
    )
}

impl Table {
    pub(crate) fn new(outer: outer::Outer, spaces: crate::track::SpaceNumbers) -> Self {
        Self {
            outer,
            spaces,
            ..Default::default()
        }
    }

    pub(super) fn add(&mut self, kind: Kind, flags: u32) -> u32 {
        let id = self.files.len() as u32 + 1;
        self.files.push(OpenFile {
            id,
            flags,
            kind: Some(kind),
            ..Default::default()
        });
        id
    }

    /// The file of a mapping; opened anew for it at restore.
    pub(crate) fn mapped(
        &mut self,
        pid: u32,
        area: &Area,
        writable: bool,
    ) -> Result<Result<u32, Why>, CheckpointError> {
        let flags = if writable {
            libc::O_RDWR
        } else {
            libc::O_RDONLY
        } as u32;
        if area.path.ends_with(" (deleted)")
            || (writable && (self.save_files || object::is_memory(pid, area)))
        {
            return self.mapped_object(pid, area, flags);
        }
        let key = (area.path.clone(), writable);
        if let Some(&id) = self.mapped.get(&key) {
            return Ok(Ok(id));
        }
        let device = libc::makedev(area.device.0, area.device.1);
        match regular::mapped(pid, &area.path, device, area.inode) {
            Ok(regular) => {
                let id = self.add(Kind::Regular(regular), flags);
                self.mapped.insert(key, id);
                self.by_path.push((id, (device, area.inode)));
                Ok(Ok(id))
            }
            Err(why) => Ok(Err(why)),
        }
    }

    /// A mapped file without a name.
    fn mapped_object(
        &mut self,
        pid: u32,
        area: &Area,
        flags: u32,
    ) -> Result<Result<u32, Why>, CheckpointError> {
        let path = match area.start {
            0 => format!("/proc/{pid}/exe"),
            start => format!("/proc/{pid}/map_files/{start:x}-{:x}", area.end),
        };
        let file = File::open(&path).map_err(failed(format!("opening {path}")))?;
        let object = match object::find(self, &file, &area.path) {
            Ok(object) => object,
            Err(why) => return Ok(Err(why)),
        };
        let key = (format!("object {object}"), flags != 0);
        if let Some(&id) = self.mapped.get(&key) {
            return Ok(Ok(id));
        }
        let offset = 0;
        let id = self.add(
            Kind::Object(images::proto::Object { object, offset }),
            flags,
        );
        self.mapped.insert(key, id);
        Ok(Ok(id))
    }

    /// The executed file.
    pub(crate) fn exe(&mut self, pid: u32) -> Result<Result<u32, Why>, CheckpointError> {
        let path = maps::exe_path(pid)?;
        let meta = std::fs::metadata(format!("/proc/{pid}/exe"))
            .map_err(failed(format!("looking at {path}")))?;
        let device = (
            nix::sys::stat::major(meta.dev()) as u32,
            nix::sys::stat::minor(meta.dev()) as u32,
        );
        let area = Area {
            path,
            device,
            inode: meta.ino(),
            ..Default::default()
        };
        self.mapped(pid, &area, false)
    }

    /// The object behind a shared anonymous mapping.
    pub(crate) fn shared_memory(&mut self, pid: u32, area: &Area) -> Result<u32, CheckpointError> {
        let path = format!("/proc/{pid}/map_files/{:x}-{:x}", area.start, area.end);
        let file = File::open(&path).map_err(failed(format!("opening shared memory {path}")))?;
        let found = if segments::is(area) {
            self.segment(&file, &area.path)
        } else {
            object::find(self, &file, &area.path)
        };
        found.map_err(|(why, advice)| {
            let what = format!("mapping {:x}-{:x} ({})", area.start, area.end, area.path);
            CheckpointError::Refused(vec![Refusal {
                pid,
                what,
                why,
                advice,
            }])
        })
    }

    /// A segment of System V shared memory, by something open on it.
    pub(crate) fn segment(&mut self, file: &File, link: &str) -> Result<u32, Why> {
        let inode = file.metadata().map_or(0, |meta| meta.ino());
        object::add(self, file, link, segments::describe(inode))
    }

    /// Takes all descriptors of a process, which are listed with what is told of them.
    pub(crate) fn descriptors(
        &mut self,
        pid: u32,
        listed: Vec<(u32, Option<tracker::Descriptor>)>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Vec<Descriptor>, CheckpointError> {
        let pidfd =
            sys::pidfd_open(pid as i32).map_err(failed(format!("opening process {pid}")))?;
        let mut descriptors = Vec::new();
        for (fd, told) in listed {
            if let Some(descriptor) = told.as_ref().and_then(|told| bulk::plain(self, pid, told)) {
                descriptors.push(descriptor);
                continue;
            }
            let identity = told.as_ref().map(|told| told.identity);
            let held = match told {
                Some(told) if is_simple(&told) => hold_told(pid, &pidfd, told)?,
                _ => hold(pid, &pidfd, fd)?,
            };
            let ours = self.spaces.sockets.unwrap_or_default();
            if held.link.starts_with("socket:") && ours.contains(&held.meta.ino()) {
                continue;
            }
            let what = format!("descriptor {fd} ({})", held.link);
            match self.descriptor(held, identity) {
                Ok(descriptor) => descriptors.push(descriptor),
                Err((why, advice)) => refusals.push(Refusal {
                    pid,
                    what,
                    why,
                    advice,
                }),
            }
        }
        Ok(descriptors)
    }

    /// Judges the descriptors of a process that runs, for what they are: what they hold at the moment is not looked at. Those that were
    /// `harmless` at an earlier look still are.
    pub(crate) fn judge(
        &mut self,
        pid: u32,
        tracker: Option<&Tracker>,
        harmless: &mut Harmless,
        refusals: &mut Vec<Refusal>,
    ) {
        let Ok(pidfd) = sys::pidfd_open(pid as i32) else {
            return;
        };
        for (fd, told) in bulk::list(pid, tracker) {
            let known = told
                .as_ref()
                .map(|told| (pid, fd, told.identity, told.inode));
            if known.is_some_and(|known| harmless.0.contains(&known))
                || told.is_some_and(|told| is_plain(told.mode))
            {
                continue;
            }
            // It may have been closed meanwhile.
            let Ok(held) = hold(pid, &pidfd, fd) else {
                continue;
            };
            let judged = match held.meta.mode() & libc::S_IFMT {
                _ if is_plain(held.meta.mode()) || path::is(held.flags) => Ok(()),
                // What they are connected to, and what waits in them, may be others by then.
                libc::S_IFSOCK
                    if unix::domain(&held.file) == Some(libc::AF_UNIX)
                        || inet::is_tcp(&held.file) =>
                {
                    Ok(())
                }
                libc::S_IFSOCK
                    if datagram::is(&held.file) && self.outer.object(&held).is_none() =>
                {
                    datagram::supported(&held.file).map(drop)
                }
                _ if held.link == "anon_inode:inotify" => Ok(()),
                _ => self.classify(&held).map(drop),
            };
            match judged {
                Ok(()) => harmless.0.extend(known),
                Err((why, advice)) => refusals.push(Refusal {
                    pid,
                    what: format!("descriptor {fd} ({})", held.link),
                    why,
                    advice,
                }),
            }
        }
    }

    /// Takes one, which may lead to an open file that is known already.
    fn descriptor(
        &mut self,
        held: Held,
        identity: Option<FileIdentity>,
    ) -> Result<Descriptor, Why> {
        let (fd, close_on_exec) = (held.fd, held.flags & libc::O_CLOEXEC as u32 != 0);
        let (locks, locks_of_file) = lock::parse(&held.info)?;
        let key = (held.meta.dev(), held.meta.ino());
        let known = match identity {
            Some(identity) => self.identities.get(&identity).copied(),
            None => self.holders.get(&key).and_then(|others| {
                let holder = others.iter().find(|&&(other, other_fd, _)| {
                    let (a, b) = (u64::from(other_fd), u64::from(fd));
                    let (one, two) = (other as i32, held.pid as i32);
                    let same = sys::compare(one, two, sys::Share::File, a, b);
                    same.is_ok_and(|order| order == std::cmp::Ordering::Equal)
                });
                holder.map(|&(_, _, file)| file)
            }),
        };
        let file = match known {
            Some(file) => file,
            None => {
                let kind = self.classify(&held)?;
                let id = self.add(kind, held.flags & !(libc::O_CLOEXEC as u32));
                let file = &mut self.files[id as usize - 1];
                file.owner = owner(&held);
                file.inode = inode(&held, file);
                self.files[id as usize - 1].locks = locks_of_file;
                self.identities.extend(identity.map(|it| (it, id)));
                let holder = (held.pid, fd, id);
                self.holders.entry(key).or_default().push(holder);
                self.pending.push((id, held));
                id
            }
        };
        Ok(Descriptor {
            fd,
            file,
            close_on_exec,
            locks,
        })
    }

    pub(super) fn classify(&mut self, held: &Held) -> Result<Kind, Why> {
        if let Some(kind) = self.outer.terminal(held) {
            return Ok(kind);
        }
        if path::is(held.flags) {
            return path::capture(held);
        }
        match held.meta.mode() & libc::S_IFMT {
            libc::S_IFREG if posix_queue::is(held) => posix_queue::capture(held),
            libc::S_IFREG if held.meta.nlink() == 0 => object::capture(self, held),
            libc::S_IFREG if self.save_files && object::can_be_saved(held) => {
                object::capture(self, held)
            }
            libc::S_IFREG => regular::capture(held),
            libc::S_IFDIR => regular::directory(held),
            libc::S_IFCHR => pty::capture(held).unwrap_or_else(|| device::capture(held)),
            libc::S_IFIFO => Ok(pipe::capture(held)),
            _ if held.link == "anon_inode:[eventfd]" => Ok(eventfd::capture(held)),
            _ if held.link == "anon_inode:[eventpoll]" => Ok(epoll::capture(held)),
            _ if held.link == "anon_inode:[timerfd]" => timerfd::capture(held),
            _ if held.link == "anon_inode:[signalfd]" => Ok(signalfd::capture(held)),
            _ if held.link == "anon_inode:[pidfd]" => Ok(pidfd::capture(held)),
            _ if held.link == "anon_inode:inotify" => inotify::capture(held),
            libc::S_IFSOCK
                if unix::domain(&held.file) == Some(libc::AF_UNIX)
                    && self.outer.object(held).is_none() =>
            {
                unix::capture(held)
            }
            libc::S_IFSOCK if inet::is_tcp(&held.file) && self.outer.object(held).is_none() => {
                inet::capture(held)
            }
            libc::S_IFSOCK if datagram::is(&held.file) && self.outer.object(held).is_none() => {
                datagram::capture(held)
            }
            _ => self
                .outer
                .object(held)
                .ok_or_else(|| unsupported(&held.link)),
        }
    }

    /// Settles what depends on several descriptors: which pipes lead out of the job, what is in the others, and what epolls watch.
    pub(crate) fn finish(
        &mut self,
        processes: &[(u32, &[Descriptor])],
        run: pty::Running<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), CheckpointError> {
        let mut refuse = |held: &Held, (why, advice): Why| {
            refusals.push(Refusal {
                pid: held.pid,
                what: format!("descriptor {} ({})", held.fd, held.link),
                why,
                advice,
            });
        };
        unix::finish(self, &mut refuse);
        inet::finish(self, &mut refuse);
        let pending = std::mem::take(&mut self.pending);
        pipe::finish(&mut self.files, &pending, &self.outer, &mut refuse);
        pty::finish(&mut self.files, &pending, &mut *run, &mut refuse)?;
        posix_queue::finish(&mut self.files, &pending, run, &mut refuse)?;
        epoll::finish(&mut self.files, &pending, processes, &mut refuse);
        proc::finish(&mut self.files, &pending, &self.members, &mut refuse);
        object::finish_capture(self, &pending);
        let members: Vec<u32> = self.members.keys().copied().collect();
        pidfd::finish(&self.files, &pending, &members, &mut refuse);
        Ok(())
    }
}

/// Says what a file is that nobody knows how to make again, and what the user can do.
fn unsupported(link: &str) -> Why {
    // "anon_inode:[perf_event]", "socket:[123]"
    let (kind, name) = link.split_once(':').unwrap_or((link, ""));
    let name = name.trim_matches(['[', ']']);
    let (what, advice) = match (kind, name) {
        ("anon_inode", "io_uring") => (
            "an io_uring",
            "start the program without (node, libuv: UV_USE_IO_URING=0; PostgreSQL: io_method=worker)",
        ),
        ("anon_inode", "userfaultfd") => {
            ("a userfaultfd", "checkpoint when the program has closed it")
        }
        ("anon_inode", "perf_event") => (
            "a performance counter (perf_event_open(2))",
            "checkpoint when nothing is measured",
        ),
        ("anon_inode", "fanotify") => (
            "a fanotify group",
            "checkpoint when it is closed, or use inotify(7)",
        ),
        ("anon_inode", name) => (name, "checkpoint when it is closed"),
        _ => (kind, "checkpoint when it is closed"),
    };
    let why = format!("this is {what}, which is not supported");
    (why, advice.to_owned())
}
