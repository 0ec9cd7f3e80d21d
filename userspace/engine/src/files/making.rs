//! Where each open file of a job is made, and how it gets to where the job has it.

use std::cell::OnceCell;
use std::collections::HashMap;

use images::proto::open_file::Kind;
use images::proto::{Credentials, OpenFile, Process, SharedMemory};

use crate::identity;

use super::F_SETSIG;
use super::shell::Shell;
use super::{
    datagram, device, epoll, eventfd, inotify, object, outer, path, pidfd, pipe, posix_queue, pty,
    regular, signalfd, timerfd,
};

/// Flags that open(2) ignores afterwards or that we set by ourselves; O_ASYNC comes last (`tell`).
pub(crate) const STATUS_FLAGS: u32 =
    (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME) as u32;

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
    /// The first process that holds each file, once that has been asked.
    pub(crate) makers: OnceCell<HashMap<u32, usize>>,
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
        let makers = self.makers.get_or_init(|| {
            let mut makers = HashMap::new();
            for (nth, process) in self.processes.iter().enumerate() {
                for descriptor in &process.descriptors {
                    makers.entry(descriptor.file).or_insert(nth);
                }
            }
            makers
        });
        let holder = makers.get(&id).and_then(|&nth| self.processes.get(nth));
        holder.or_else(|| {
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
    pub(super) fn made_by(&self, pid: u32) -> Vec<&OpenFile> {
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
                Some(Kind::Epoll(epoll)) => epoll::open(shell, epoll),
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
                Some(Kind::PosixQueue(queue)) => {
                    match posix_queue::open(shell, self, queue, file) {
                        Some(fd) => fd,
                        None => continue,
                    }
                }
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

    /// Gives pipes and sockets their owner and mode: /dev/stdout leads to them too. What a process makes is its own.
    pub(crate) fn give(&self, shell: &mut Shell, process: &Process, ours: &Credentials) {
        let mine = process.threads.first().and_then(|t| t.credentials.as_ref());
        let mine = mine.map_or((0, 0), |mine| (mine.fsuid, mine.fsgid));
        let other = |(fd, file): (u32, &OpenFile)| {
            let inode = file.inode.unwrap_or_default();
            let other =
                usual_mode(file).is_some() && ((inode.uid, inode.gid) != mine || inode.mode != 0);
            other.then_some((fd, inode))
        };
        let others: Vec<_> = self
            .made_in_place(process)
            .into_iter()
            .filter_map(other)
            .collect();
        if others.is_empty() {
            return;
        }
        identity::files_as_ourselves(&mut shell.program, process, ours, |program| {
            for (fd, inode) in others {
                let args = [fd.into(), inode.uid.into(), inode.gid.into()];
                let label = format!("give descriptor {fd} its owner");
                program.must(libc::SYS_fchown, &args, label);
                if inode.mode != 0 {
                    let args = [fd.into(), inode.mode.into()];
                    let label = format!("give descriptor {fd} its mode");
                    program.must(libc::SYS_fchmod, &args, label);
                }
            }
        });
    }

    /// Who hears of a descriptor by signals, when everybody is there: the number that a signal tells is the one by which O_ASYNC is set
    /// (fs/fcntl.c, fasync_insert_entry).
    pub(crate) fn tell(&self, shell: &mut Shell, process: &Process) {
        for (fd, file) in self.made_in_place(process) {
            set_owner(shell, fd, file);
            let flags = file.flags & (STATUS_FLAGS | libc::O_ASYNC as u32);
            if flags & libc::O_ASYNC as u32 != 0 {
                let label = "send signals about it";
                shell.fcntl(fd, libc::F_SETFL, u64::from(flags), label);
            }
            pty::keep(shell, fd, file);
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

/// Permission bits of an anonymous pipe or of a socket that has just been made.
pub(crate) fn usual_mode(file: &OpenFile) -> Option<u32> {
    match &file.kind {
        Some(Kind::Pipe(end)) => end.path.is_empty().then_some(0o600),
        Some(Kind::Unix(_) | Kind::Tcp(_) | Kind::Datagram(_)) => Some(0o777),
        _ => None,
    }
}

/// The open files that are on their way in a socket.
pub(super) fn carries(file: &OpenFile) -> impl Iterator<Item = u32> + '_ {
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

pub(super) fn set_owner(shell: &mut Shell, fd: u32, file: &OpenFile) {
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
