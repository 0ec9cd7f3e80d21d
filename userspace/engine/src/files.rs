//! Descriptors and the open files behind them. Each kind of file is a module with its capture and its rebuild; this one finds out
//! what shares what, and hands files from the process that opens them to the others that hold them.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{Descriptor, OpenFile, Owner, Process, SharedMemory};
use remote::{Arg, Expect, Program, sys};
use tracker::{FileIdentity, Tracker};

use crate::areas::Area;
use crate::freeze::failed;
use crate::ipc::segments;
use crate::maps;
use crate::procfs;
use crate::{CheckpointError, Refusal};

mod bulk;
pub(crate) mod datagram;
pub(crate) mod device;
pub(crate) mod directory;
pub(crate) mod epoll;
pub(crate) mod eventfd;
pub(crate) mod inet;
pub(crate) mod inotify;
pub(crate) mod lock;
pub(crate) mod object;
pub(crate) mod options;
pub(crate) mod outer;
pub(crate) mod path;
pub(crate) mod pidfd;
pub(crate) mod pipe;
pub(crate) mod proc;
pub(crate) mod pty;
pub(crate) mod regular;
pub(crate) mod signalfd;
pub(crate) mod timerfd;
pub(crate) mod unix;

/// fcntl(2), include/uapi/asm-generic/fcntl.h.
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;

/// Why something is refused, and what to do.
pub(crate) type Why = (String, String);

/// One descriptor of a stopped process, as a capture sees it.
pub(crate) struct Held {
    pub(crate) pid: u32,
    pub(crate) fd: u32,
    /// Our own duplicate of it.
    pub(crate) file: OwnedFd,
    pub(crate) meta: std::fs::Metadata,
    /// Where /proc/PID/fd/N leads.
    pub(crate) link: String,
    /// O_* as fcntl(F_GETFL) gives them.
    pub(crate) flags: u32,
    pub(crate) info: String,
}

impl Held {
    /// A descriptor of ours.
    fn own(fd: OwnedFd) -> std::io::Result<Self> {
        let file = File::from(fd);
        let info = sys::fdinfo(&file)?;
        Ok(Self {
            pid: std::process::id(),
            fd: std::os::fd::AsRawFd::as_raw_fd(&file) as u32,
            meta: file.metadata()?,
            link: sys::path_of(&file)?,
            flags: flags(&info),
            info,
            file: file.into(),
        })
    }

    /// A number of /proc/PID/fdinfo/N.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let value = self
            .info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
            .trim();
        value.strip_prefix("0x").map_or_else(
            || value.parse().ok(),
            |hex| u64::from_str_radix(hex, 16).ok(),
        )
    }
}

/// Process, descriptor and the id given to the open file behind it.
type Holder = (u32, u32, u32);

/// All open files of a job while it is captured.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) files: Vec<OpenFile>,
    pub(crate) shared: Vec<SharedMemory>,
    /// Descriptors of shared memory objects, to read them by.
    pub(crate) objects: Vec<(u64, OwnedFd, u64)>,
    /// First holders of each open file with a device and inode in common, for kcmp.
    holders: HashMap<(u64, u64), Vec<Holder>>,
    mapped: HashMap<(String, bool), u32>,
    objects_by_inode: HashMap<(u64, u64), u32>,
    /// Files that are looked at again when all descriptors are known.
    pub(crate) pending: Vec<(u32, Held)>,
    pub(crate) outer: outer::Outer,
    pub(crate) spaces: crate::track::SpaceNumbers,
    /// Processes of the job: their pids as we see them, and inside the job.
    pub(crate) members: HashMap<u32, u32>,
    /// Open files as the kernel tells them apart.
    identities: HashMap<FileIdentity, u32>,
    /// Files that are found by their paths alone, with device and inode.
    by_path: Vec<(u32, (u64, u64))>,
}

impl Table {
    pub(crate) fn new(outer: outer::Outer, spaces: crate::track::SpaceNumbers) -> Self {
        Self {
            outer,
            spaces,
            ..Default::default()
        }
    }

    fn add(&mut self, kind: Kind, flags: u32) -> u32 {
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
        if area.path.ends_with(" (deleted)") || (writable && object::is_memory(pid, area)) {
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

    /// Takes all descriptors of a process.
    pub(crate) fn descriptors(
        &mut self,
        pid: u32,
        tracker: Option<&Tracker>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Vec<Descriptor>, CheckpointError> {
        let pidfd =
            sys::pidfd_open(pid as i32).map_err(failed(format!("opening process {pid}")))?;
        let mut descriptors = Vec::new();
        for (fd, told) in bulk::list(pid, tracker) {
            if let Some(descriptor) = told.as_ref().and_then(|told| bulk::plain(self, pid, told)) {
                descriptors.push(descriptor);
                continue;
            }
            let identity = told.map(|told| told.identity);
            let held = hold(pid, &pidfd, fd)?;
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
                self.files[id as usize - 1].owner = owner(&held);
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

    fn classify(&mut self, held: &Held) -> Result<Kind, Why> {
        if let Some(kind) = self.outer.terminal(held) {
            return Ok(kind);
        }
        if path::is(held.flags) {
            return path::capture(held);
        }
        match held.meta.mode() & libc::S_IFMT {
            libc::S_IFREG if held.meta.nlink() == 0 => object::capture(self, held),
            libc::S_IFREG => regular::capture(held),
            libc::S_IFDIR => regular::directory(held),
            libc::S_IFCHR => pty::capture(held).unwrap_or_else(|| device::capture(held)),
            libc::S_IFIFO => Ok(pipe::capture(held)),
            _ if held.link == "anon_inode:[eventfd]" => Ok(eventfd::capture(held)),
            _ if held.link == "anon_inode:[eventpoll]" => Ok(epoll::capture()),
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
            _ => self.outer.object(held).ok_or_else(|| {
                let what = held.link.split(':').next().unwrap_or_default();
                let advice =
                    "checkpoint when it is closed, or see `ckptd doctor` for what is supported";
                (
                    format!("files of this kind ({what}) are not supported yet"),
                    advice.to_owned(),
                )
            }),
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
        pty::finish(&mut self.files, &pending, run, &mut refuse)?;
        epoll::finish(&mut self.files, &pending, processes, &mut refuse);
        proc::finish(&mut self.files, &pending, &self.members, &mut refuse);
        object::finish_capture(self, &pending);
        let members: Vec<u32> = self.members.keys().copied().collect();
        pidfd::finish(&self.files, &pending, &members, &mut refuse);
        Ok(())
    }
}

fn hold(pid: u32, pidfd: &OwnedFd, fd: u32) -> Result<Held, CheckpointError> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let link = procfs::link(&path).map_err(failed(format!("reading {path}")))?;
    let info_path = format!("/proc/{pid}/fdinfo/{fd}");
    let info =
        std::fs::read_to_string(&info_path).map_err(failed(format!("reading {info_path}")))?;
    let file = sys::pidfd_getfd(pidfd, fd).map_err(failed(format!(
        "duplicating descriptor {fd} of process {pid}"
    )))?;
    let file = File::from(file);
    let meta = file
        .metadata()
        .map_err(failed(format!("looking at {path}")))?;
    let flags = flags(&info);
    Ok(Held {
        pid,
        fd,
        file: file.into(),
        meta,
        link,
        flags,
        info,
    })
}

/// O_* in /proc/PID/fdinfo/N.
fn flags(info: &str) -> u32 {
    let octal = info.lines().find_map(|line| line.strip_prefix("flags:"));
    u32::from_str_radix(octal.unwrap_or_default().trim(), 8).unwrap_or(0)
}

/// Who gets signals about a descriptor (F_SETOWN_EX, F_SETSIG).
fn owner(held: &Held) -> Option<Owner> {
    let (kind, pid) = sys::owner(&held.file).ok()?;
    let signal = sys::fcntl(&held.file, F_GETSIG, 0).unwrap_or(0);
    (pid != 0 || signal != 0).then_some(Owner {
        pid,
        r#type: kind as u32,
        signal: signal as u32,
    })
}

/// A process's descriptor table while its programs are written: descriptors are given out lowest first, as the kernel does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers {
    used: std::collections::BTreeSet<u32>,
}

impl Numbers {
    pub(crate) fn new(used: impl IntoIterator<Item = u32>) -> Self {
        Self {
            used: used.into_iter().collect(),
        }
    }

    /// The descriptor the next call that makes one will give.
    pub(crate) fn allocate(&mut self) -> u32 {
        let mut lowest = 0;
        for &fd in &self.used {
            if fd != lowest {
                break;
            }
            lowest += 1;
        }
        self.used.insert(lowest);
        lowest
    }

    pub(crate) fn take(&mut self, fd: u32) {
        self.used.insert(fd);
    }

    pub(crate) fn release(&mut self, fd: u32) {
        self.used.remove(&fd);
    }
}

/// A program under way in one process, with its descriptor table.
pub(crate) struct Shell {
    pub(crate) program: Program,
    pub(crate) numbers: Numbers,
}

impl Shell {
    /// A call that gives a new descriptor.
    pub(crate) fn open(&mut self, nr: i64, args: &[Arg], label: impl Into<String>) -> u32 {
        let fd = self.numbers.allocate();
        self.program
            .call(nr, args, Expect::Exactly(u64::from(fd)), label);
        fd
    }

    pub(crate) fn open_path(&mut self, path: &str, flags: u32) -> u32 {
        let name = self.program.string(path);
        // Never become the controlling terminal's owner by accident.
        let flags = flags | (libc::O_NOCTTY | libc::O_CLOEXEC) as u32;
        let args = [libc::AT_FDCWD.into(), name.into(), flags.into(), 0.into()];
        self.open(libc::SYS_openat, &args, format!("open {path}"))
    }

    pub(crate) fn close(&mut self, fd: u32) {
        self.numbers.release(fd);
        self.program.must(
            libc::SYS_close,
            &[fd.into()],
            format!("close descriptor {fd}"),
        );
    }

    /// Moves a descriptor to another, free, number.
    pub(crate) fn rename(&mut self, from: u32, to: u32, close_on_exec: bool) {
        if from == to {
            let flag = u64::from(close_on_exec);
            self.program.must(
                libc::SYS_fcntl,
                &[from.into(), libc::F_SETFD.into(), flag.into()],
                "set close-on-exec",
            );
            return;
        }
        self.duplicate(from, to, close_on_exec);
        self.close(from);
    }

    /// Moves a descriptor to a number that is in use.
    pub(crate) fn rename_over(&mut self, from: u32, to: u32) {
        self.duplicate(from, to, true);
        self.close(from);
    }

    pub(crate) fn duplicate(&mut self, from: u32, to: u32, close_on_exec: bool) {
        let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
        let args = [from.into(), to.into(), flags.into()];
        self.program.call(
            libc::SYS_dup3,
            &args,
            Expect::Exactly(u64::from(to)),
            format!("make it descriptor {to}"),
        );
        self.numbers.take(to);
    }

    /// Fetches a descriptor of another process of the job.
    pub(crate) fn fetch(&mut self, pid: u32, fd: u32) -> u32 {
        let process = self.open(
            libc::SYS_pidfd_open,
            &[pid.into(), 0.into()],
            format!("open process {pid}"),
        );
        let args = [process.into(), fd.into(), 0.into()];
        let got = self.open(
            libc::SYS_pidfd_getfd,
            &args,
            format!("take descriptor {fd} of process {pid}"),
        );
        self.close(process);
        got
    }

    /// fcntl that must succeed.
    pub(crate) fn fcntl(&mut self, fd: u32, command: i32, argument: u64, label: &str) {
        self.program.must(
            libc::SYS_fcntl,
            &[fd.into(), command.into(), argument.into()],
            label,
        );
    }
}

/// Flags that open(2) ignores afterwards or that we set by ourselves.
pub(crate) const STATUS_FLAGS: u32 =
    (libc::O_APPEND | libc::O_NONBLOCK | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME) as u32;

/// Where each open file of a job is made, and under which numbers it lies meanwhile.
pub(crate) struct Making<'a> {
    pub(crate) files: &'a [OpenFile],
    pub(crate) processes: &'a [Process],
    /// First number above all descriptors of the job; three copies of the outer standard descriptors come first.
    pub(crate) outer: u32,
    /// Where open file `id` lies in the process that makes it: this plus its id.
    pub(crate) base: u32,
    /// All objects.
    pub(crate) objects: &'a [SharedMemory],
    /// Indices of pseudo terminals that others have.
    pub(crate) terminals: Vec<u32>,
}

impl Making<'_> {
    pub(crate) fn file(&self, id: u32) -> Option<&OpenFile> {
        self.files
            .get((id as usize).wrapping_sub(1))
            .filter(|file| file.id == id)
    }

    /// The first process that holds the file, in the order of the snapshot; of one that is on its way through a socket, the first that holds
    /// that.
    pub(crate) fn maker(&self, id: u32) -> Option<&Process> {
        self.maker_within(id, 8)
    }

    fn maker_within(&self, id: u32, depth: u32) -> Option<&Process> {
        let holds = |process: &&Process| process.descriptors.iter().any(|d| d.file == id);
        self.processes.iter().find(holds).or_else(|| {
            let mut carriers = self
                .files
                .iter()
                .filter(|file| carries(file).any(|f| f == id));
            let carrier = carriers.next().filter(|_| depth > 0)?;
            self.maker_within(carrier.id, depth - 1)
        })
    }

    /// Where the other end of socket `id` waits when it is there only to be closed.
    pub(crate) fn ghost(&self, id: u32) -> u32 {
        self.object_place(self.objects.len() as u32) + id
    }

    /// Where a listening socket waits in place of the one by which socket `id` was accepted.
    pub(crate) fn spare(&self, id: u32) -> u32 {
        self.ghost(self.files.len() as u32) + id
    }

    /// Where the maker keeps the file until everybody has it.
    pub(crate) fn place(&self, id: u32) -> u32 {
        self.base + id
    }

    /// Where an object's maker keeps it.
    pub(crate) fn object_place(&self, id: u32) -> u32 {
        self.base + self.files.len() as u32 + id
    }

    pub(crate) fn object_maker(&self, id: u32) -> u32 {
        let object = self.objects.get((id as usize).wrapping_sub(1));
        let segment = object.and_then(|object| object.segment.as_ref());
        object::maker(self.processes, self.files, (id, segment)).map_or(0, |maker| maker.pid)
    }

    /// What a process has made, by the first number it has it under.
    pub(crate) fn made_in_place(&self, process: &Process) -> Vec<(u32, &OpenFile)> {
        let number = |file: &OpenFile| process.descriptors.iter().find(|d| d.file == file.id);
        let made = self.made_by(process.pid).into_iter();
        made.filter_map(|file| Some((number(file)?.fd, file)))
            .collect()
    }

    /// The files that a process makes, by id.
    fn made_by(&self, pid: u32) -> Vec<&OpenFile> {
        let mut ids: Vec<u32> = self
            .processes
            .iter()
            .filter(|process| process.pid == pid)
            .flat_map(|process| process.descriptors.iter().map(|d| d.file))
            .chain(self.files.iter().flat_map(carries))
            .filter(|&id| self.maker(id).is_some_and(|maker| maker.pid == pid))
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().filter_map(|id| self.file(id)).collect()
    }

    /// Step 1, in every process: makes the files it is to make.
    pub(crate) fn make(&self, shell: &mut Shell, pid: u32) {
        self.make_those(shell, pid, |file| {
            !(device::is_own_terminal(file) || pty::is_slave(file))
        });
    }

    /// Step 1 for sessions with a terminal of the job, and for what needs terminals to be there: their other ends, /dev/tty.
    pub(crate) fn make_terminals(&self, shell: &mut Shell, process: &Process) {
        pty::control(shell, self, process);
        self.make_those(shell, process.pid, |file| {
            device::is_own_terminal(file) || pty::is_slave(file)
        });
    }

    fn make_those(&self, shell: &mut Shell, pid: u32, those: fn(&OpenFile) -> bool) {
        for file in self.made_by(pid).into_iter().filter(|file| those(file)) {
            let place = self.place(file.id);
            let fd = match &file.kind {
                Some(Kind::Regular(regular)) => regular::open(shell, regular, file.flags),
                Some(Kind::Directory(directory)) => {
                    regular::open_directory(shell, directory, file.flags)
                }
                Some(Kind::Device(device)) => device::open(shell, device, file.flags),
                Some(Kind::Eventfd(eventfd)) => eventfd::open(shell, eventfd, file.flags),
                Some(Kind::Epoll(_)) => epoll::open(shell),
                Some(Kind::Timerfd(timer)) => timerfd::open(shell, timer, file.flags),
                Some(Kind::Signalfd(signalfd)) => signalfd::open(shell, signalfd, file.flags),
                Some(Kind::Inotify(_)) => inotify::open(shell, file.flags),
                Some(Kind::Path(named)) => path::open(shell, named, file.flags),
                Some(Kind::Object(object)) => object::open(shell, self, object, file),
                Some(Kind::Pidfd(_)) if pidfd::is_dead(file) => {
                    shell.numbers.take(place);
                    continue;
                }
                Some(Kind::Pidfd(process)) => pidfd::open(shell, process, file.flags),
                Some(Kind::Pipe(end)) => match pipe::open(shell, self, end, file) {
                    Some(fd) => fd,
                    None => continue,
                },
                Some(Kind::Pty(end)) => match pty::open(shell, self, end, file) {
                    Some(fd) => fd,
                    None => continue,
                },
                Some(Kind::Datagram(socket)) => datagram::open(shell, socket, file.flags),
                // Made in steps of their own.
                Some(Kind::Unix(_) | Kind::Tcp(_)) => continue,
                Some(Kind::Outer(outer)) if outer.fd > 2 => outer::open(shell),
                Some(Kind::Terminal(_) | Kind::Outer(_)) | None => continue,
            };
            shell.rename(fd, place, true);
            set_owner(shell, place, file);
        }
    }

    /// Step 2, in every process, once all have made theirs: puts every descriptor into its place. Numbers are free below `outer`.
    pub(crate) fn place_all(&self, shell: &mut Shell, process: &Process, host: &crate::host::Host) {
        let mut first: HashMap<u32, u32> = HashMap::new();
        for descriptor in &process.descriptors {
            let (fd, cloexec) = (descriptor.fd, descriptor.close_on_exec);
            if let Some(file) = self.file(descriptor.file)
                && let Some(number) = outer::number(file, fd, host)
            {
                shell.duplicate(self.outer + number, fd, cloexec);
                continue;
            }
            if let Some(&mine) = first.get(&descriptor.file) {
                shell.duplicate(mine, fd, cloexec);
                continue;
            }
            let maker = self.maker(descriptor.file).map_or(0, |maker| maker.pid);
            if maker == process.pid {
                shell.duplicate(self.place(descriptor.file), fd, cloexec);
            } else {
                let got = shell.fetch(maker, self.place(descriptor.file));
                // The numbers it may have been given are not final ones: those are taken in ascending order from above.
                shell.rename(got, fd, cloexec);
            }
            first.insert(descriptor.file, fd);
        }
    }
}

/// The open files that are on their way in a socket.
fn carries(file: &OpenFile) -> impl Iterator<Item = u32> + '_ {
    let queue = match &file.kind {
        Some(Kind::Unix(socket)) => socket.queue.as_slice(),
        _ => &[],
    };
    queue
        .iter()
        .flat_map(|message| message.files.iter().copied())
}

/// Whether sockets need room for what is only there while they are made.
pub(crate) fn has_sockets(files: &[OpenFile]) -> bool {
    files
        .iter()
        .any(|file| matches!(file.kind, Some(Kind::Unix(_) | Kind::Tcp(_))))
}

fn set_owner(shell: &mut Shell, fd: u32, file: &OpenFile) {
    let Some(owner) = &file.owner else { return };
    if owner.pid != 0 {
        // struct f_owner_ex; the owner may be gone by now.
        let kind = (owner.r#type as i32).to_ne_bytes();
        let blob = shell
            .program
            .bytes([kind, owner.pid.to_ne_bytes()].concat());
        let args = [fd.into(), 15.into(), blob.into()];
        shell
            .program
            .try_call(libc::SYS_fcntl, &args, "set who gets signals about it");
    }
    if owner.signal != 0 {
        shell.fcntl(
            fd,
            F_SETSIG,
            u64::from(owner.signal),
            "set the signal about it",
        );
    }
}
