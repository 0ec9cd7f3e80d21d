//! Unix sockets are made again in steps, each in every process before the next: sockets with their names, connections, their acceptance, what
//! is on its way, and last what would have been in the way of that. Who connects is who did so before: its peer can ask (SO_PEERCRED).

use images::proto::open_file::Kind;
use images::proto::process::State;
use images::proto::{Credentials, Message, OpenFile, Process, UnixSocket};
use remote::{Arg, Blob};

use super::{is_path, taken};
use crate::files::{Making, Network, STATUS_FLAGS, Shell, options};
use crate::host::Host;
use crate::plan::Stages;
use crate::{Refusal, identity};

/// Connections that wait to be accepted meanwhile, at most (net.core.somaxconn limits it further).
const BACKLOG: u32 = 4096;
/// Pieces in which a stream is put in.
const PIECE: usize = 64 << 10;

/// How a socket comes about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// socket(2).
    Alone,
    /// socketpair(2) with another, or with one that is closed then.
    Pair(Option<u32>),
    /// connect(2) to what becomes this one.
    Client(u32),
    /// accept(2) of this one's connection, or of one that is closed then.
    Server(Option<u32>),
    /// connect(2) to this listening socket, which does not accept it yet.
    Waiting(u32),
}

type Socket<'a> = (u32, &'a UnixSocket, &'a OpenFile);

fn unix(file: &OpenFile) -> Option<Socket<'_>> {
    match &file.kind {
        Some(Kind::Unix(socket)) => Some((file.id, socket, file)),
        _ => None,
    }
}

/// A connection to be made: by which process, from which number, to become which socket, through which listening one.
struct Connection {
    position: usize,
    client: Option<u32>,
    server: u32,
    listener: u32,
}

/// All Unix sockets of a job.
pub(crate) struct Sockets<'a> {
    making: &'a Making<'a>,
    ours: &'a Credentials,
}

impl<'a> Sockets<'a> {
    pub(crate) fn new(making: &'a Making<'a>, ours: &'a Credentials) -> Self {
        Self { making, ours }
    }

    fn all(&self) -> impl Iterator<Item = Socket<'a>> + use<'a> {
        self.making.files.iter().filter_map(unix)
    }

    fn by_inode(&self, inode: u64) -> Option<Socket<'a>> {
        self.all()
            .find(|(_, socket, _)| inode != 0 && socket.inode == inode)
    }

    fn by_id(&self, id: u32) -> Option<Socket<'a>> {
        self.making.file(id).and_then(unix)
    }

    fn listening(&self, name: &[u8]) -> Option<u32> {
        let found = self.all().find(|(_, s, _)| s.listening && s.name == name);
        found.map(|(id, ..)| id)
    }

    fn origin(&self, (id, socket, _): Socket<'_>) -> Origin {
        let stream = socket.r#type != libc::SOCK_DGRAM as u32;
        if socket.peer_closed {
            return if stream && !socket.name.is_empty() {
                Origin::Server(None)
            } else {
                Origin::Pair(None)
            };
        }
        let waits = self
            .all()
            .find(|(_, s, _)| s.waiting.contains(&socket.inode));
        if let Some((listener, ..)) = waits {
            return Origin::Waiting(listener);
        }
        let Some((other, peer, _)) = self.by_inode(socket.peer) else {
            return Origin::Alone;
        };
        let mutual = peer.peer == socket.inode && other != id;
        if !stream {
            let pair = mutual && socket.name.is_empty() && peer.name.is_empty();
            return if pair {
                Origin::Pair(Some(other))
            } else {
                Origin::Alone
            };
        }
        match (socket.name.is_empty(), peer.name.is_empty()) {
            _ if !mutual => Origin::Alone,
            (true, true) => Origin::Pair(Some(other)),
            (false, true) => Origin::Server(Some(other)),
            (true, false) => Origin::Client(other),
            // Accepted sockets have the listening one's name; else the younger one was accepted.
            (false, false) => {
                let accepted = match (self.listening(&socket.name), self.listening(&peer.name)) {
                    (Some(_), None) => true,
                    (None, Some(_)) => false,
                    _ => socket.inode > peer.inode,
                };
                if accepted {
                    Origin::Server(Some(other))
                } else {
                    Origin::Client(other)
                }
            }
        }
    }

    fn maker(&self, id: u32) -> u32 {
        self.making.maker(id).map_or(0, |maker| maker.pid)
    }

    /// A process that lives, or else another.
    fn living(&self, pid: u32, or: u32) -> u32 {
        let lives = |p: &&Process| p.pid == pid && p.state() != State::Zombie;
        self.making
            .processes
            .iter()
            .find(lives)
            .map_or(or, |p| p.pid)
    }

    /// The socket through which a server is accepted: a listening one, or the first of those that share a name whose owner is gone.
    fn listener(&self, server: &UnixSocket) -> u32 {
        self.listening(&server.name).unwrap_or_else(|| {
            let same = self.all().find(|&found| {
                found.1.name == server.name && matches!(self.origin(found), Origin::Server(_))
            });
            same.map_or(0, |(id, ..)| id)
        })
    }

    /// The process in which a socket comes about.
    fn birthplace(&self, socket: Socket<'_>) -> u32 {
        match self.origin(socket) {
            Origin::Alone | Origin::Waiting(_) => self.maker(socket.0),
            Origin::Pair(other) => {
                let first = other.map_or(socket.0, |other| other.min(socket.0));
                self.living(socket.1.peer_pid, self.maker(first))
            }
            Origin::Client(server) => {
                let by = self
                    .by_id(server)
                    .map_or(0, |(_, server, _)| server.peer_pid);
                self.living(by, self.maker(socket.0))
            }
            Origin::Server(_) => self.maker(self.listener(socket.1)),
        }
    }

    /// In the order in which they are made.
    fn connections(&self) -> Vec<Connection> {
        let mut all: Vec<Connection> = self
            .all()
            .filter_map(|found| {
                let Origin::Server(client) = self.origin(found) else {
                    return None;
                };
                let listener = self.listener(found.1);
                let by = match client.and_then(|client| self.by_id(client)) {
                    Some(client) => self.birthplace(client),
                    None => self.maker(listener),
                };
                let position = self.making.processes.iter().position(|p| p.pid == by)?;
                Some(Connection {
                    position,
                    client,
                    server: found.0,
                    listener,
                })
            })
            .collect();
        all.sort_by_key(|connection| (connection.position, connection.server));
        all
    }

    fn make(&self, shell: &mut Shell, socket: &UnixSocket, to: u32) {
        let flags = socket.r#type | (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;
        let args = [libc::AF_UNIX.into(), flags.into(), 0.into()];
        let fd = shell.open(libc::SYS_socket, &args, "make a Unix socket");
        shell.rename(fd, to, true);
    }

    fn bind(&self, shell: &mut Shell, socket: &UnixSocket, fd: u32) {
        if socket.name.is_empty() {
            return;
        }
        let (address, length) = address(shell, socket, &socket.name);
        if socket.file {
            // What was left by the job as it was: nobody listens there.
            let args = [Arg::Blob(address, 2)];
            let label = "delete the old socket file, if it is there";
            shell.program.try_call(libc::SYS_unlink, &args, label);
        }
        let args = [fd.into(), address.into(), length.into()];
        let label = format!("bind it to {}", words(&socket.name));
        shell.program.must(libc::SYS_bind, &args, label);
    }

    /// All stages of it: sockets are made, connected, accepted, handed on, filled, and shut down as they were.
    pub(crate) fn rebuild(&self, stages: &mut Stages<'_>, host: &Host) {
        stages.stage("make Unix sockets", |shell, process| {
            self.create(shell, process);
        });
        stages.stage("connect Unix sockets", |shell, process| {
            self.connect(shell, process);
        });
        stages.stage("accept connections", |shell, process| {
            self.accept(shell, process);
        });
        stages.stage("take over Unix sockets", |shell, process| {
            self.hand_over(shell, process);
        });
        stages.stage("fill Unix sockets", |shell, process| {
            self.fill(shell, process, host.send_buffer);
        });
        stages.stage("finish Unix sockets", |shell, process| {
            self.finish(shell, process);
        });
    }

    /// Step 1: sockets and their names.
    fn create(&self, shell: &mut Shell, process: &Process) {
        let making = self.making;
        for found in self.all() {
            let (id, socket, _) = found;
            if self.birthplace(found) != process.pid {
                continue;
            }
            let place = making.place(id);
            match self.origin(found) {
                Origin::Pair(Some(other)) if other < id => {}
                Origin::Pair(other) => {
                    let second = other.map_or(making.ghost(id), |other| making.place(other));
                    self.as_before(shell, process, socket, |shell| {
                        pair(shell, socket.r#type, place, second);
                    });
                    self.bind(shell, socket, place);
                }
                Origin::Server(client) => {
                    if self.listener(socket) == id && !socket.listening {
                        let fd = making.spare(id);
                        self.make(shell, socket, fd);
                        self.bind(shell, socket, fd);
                        listen(shell, fd, BACKLOG);
                    }
                    if client.is_none() {
                        self.make(shell, socket, making.ghost(id));
                    }
                }
                Origin::Alone | Origin::Client(_) | Origin::Waiting(_) => {
                    self.make(shell, socket, place);
                    self.bind(shell, socket, place);
                    if socket.listening {
                        self.as_itself(shell, process, |shell| listen(shell, place, BACKLOG));
                    }
                }
            }
        }
    }

    /// Step 2: connections.
    fn connect(&self, shell: &mut Shell, process: &Process) {
        let making = self.making;
        for connection in self.connections() {
            let position = connection.position;
            let Some((_, server, _)) = self.by_id(connection.server) else {
                continue;
            };
            if making.processes.get(position).map(|p| p.pid) != Some(process.pid) {
                continue;
            }
            let fd = match connection.client {
                Some(client) => making.place(client),
                None => making.ghost(connection.server),
            };
            self.as_before(shell, process, server, |shell| {
                connect(shell, fd, server, &server.name);
            });
        }
        for (id, socket, _) in self.all() {
            let datagrams = socket.r#type == libc::SOCK_DGRAM as u32;
            if !datagrams || self.maker(id) != process.pid {
                continue;
            }
            let found = self.by_id(id).map(|found| self.origin(found));
            if found != Some(Origin::Alone) {
                continue;
            }
            if let Some((_, peer, _)) = self.by_inode(socket.peer) {
                connect(shell, making.place(id), peer, &peer.name);
            } else if !socket.peer_name.is_empty() {
                connect(shell, making.place(id), socket, &socket.peer_name);
            }
        }
    }

    /// Step 3: listening sockets accept.
    fn accept(&self, shell: &mut Shell, process: &Process) {
        let making = self.making;
        let mut done = Vec::new();
        for connection in self.connections() {
            let Some((listener, socket, _)) = self.by_id(connection.listener) else {
                continue;
            };
            if self.maker(listener) != process.pid {
                continue;
            }
            let from = if socket.listening {
                making.place(listener)
            } else {
                done.push(listener);
                making.spare(listener)
            };
            let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let args = [from.into(), 0.into(), 0.into(), flags.into()];
            let fd = shell.open(libc::SYS_accept4, &args, "accept its connection");
            shell.rename(fd, making.place(connection.server), true);
        }
        done.dedup();
        for listener in done {
            shell.close(making.spare(listener));
            if let Some((_, socket, _)) = self.by_id(listener).filter(|(_, s, _)| is_path(&s.name))
            {
                unlink(shell, socket);
            }
        }
    }

    /// Step 4: sockets go to who passes them on, and connections that nobody accepts yet are made.
    fn hand_over(&self, shell: &mut Shell, process: &Process) {
        let making = self.making;
        for found in self.all() {
            let (id, from) = (found.0, self.birthplace(found));
            if self.maker(id) == process.pid && from != process.pid {
                let fd = shell.fetch(from, making.place(id));
                shell.rename(fd, making.place(id), true);
            }
        }
        for (_, socket, _) in self.all().filter(|(_, socket, _)| socket.listening) {
            for (id, ..) in socket
                .waiting
                .iter()
                .filter_map(|&inode| self.by_inode(inode))
            {
                if self.maker(id) == process.pid {
                    self.as_itself(shell, process, |shell| {
                        connect(shell, making.place(id), socket, &socket.name);
                    });
                }
            }
        }
    }

    /// Step 5: what is on its way to the sockets of a process.
    fn fill(&self, shell: &mut Shell, process: &Process, usual: i32) {
        for found in self.all() {
            let (id, socket, _) = found;
            if self.maker(id) != process.pid || socket.queue.is_empty() {
                continue;
            }
            for message in &socket.queue {
                self.put(shell, process.pid, found, message, usual);
            }
        }
    }

    /// Puts a message into a socket from its other end, or from whoever sent it.
    fn put(&self, shell: &mut Shell, pid: u32, found: Socket<'_>, message: &Message, usual: i32) {
        let making = self.making;
        let (id, socket, _) = found;
        let fetch = |shell: &mut Shell, from: u32, number: u32| {
            if from == pid {
                (number, false)
            } else {
                (shell.fetch(from, number), true)
            }
        };
        let mut named = None;
        let other = match self.origin(found) {
            Origin::Pair(Some(other)) | Origin::Client(other) | Origin::Server(Some(other)) => {
                Some(other)
            }
            _ => None,
        };
        let sender = self.by_inode(message.from).map(|(id, ..)| id);
        let connected = self.all().find(|(_, s, _)| s.peer == socket.inode);
        let (fd, fetched);
        let mut own_options = None;
        if let Some(from) = other.or(sender).or_else(|| {
            let unnamed = connected.filter(|(_, s, _)| s.name.is_empty());
            unnamed.map(|(id, ..)| id)
        }) {
            (fd, fetched) = fetch(shell, self.maker(from), making.place(from));
            let from = self.by_id(from);
            own_options = from.map(|(_, from, _)| &from.options);
            if from.is_some_and(|(_, from, _)| from.peer != socket.inode) {
                named = Some(&socket.name);
            }
        } else if socket.peer_closed {
            (fd, fetched) = fetch(shell, self.birthplace(found), making.ghost(id));
        } else {
            let flags = socket.r#type | (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;
            let args = [libc::AF_UNIX.into(), flags.into(), 0.into()];
            fd = shell.open(libc::SYS_socket, &args, "make a socket to send from");
            fetched = true;
            named = Some(&socket.name);
        }
        options::make_room(shell, fd);
        let files = message.files.iter().filter_map(|&file| {
            let maker = making.maker(file)?.pid;
            Some((maker, making.place(file)))
        });
        let files: Vec<(u32, bool)> = files
            .map(|(maker, place)| fetch(shell, maker, place))
            .collect();
        let numbers: Vec<u32> = files.iter().map(|(fd, _)| *fd).collect();
        let control = control(message, &numbers);
        let stream = socket.r#type == libc::SOCK_STREAM as u32;
        let piece = if stream { PIECE } else { usize::MAX };
        let to = named.map(|name| address(shell, socket, name));
        for (nth, data) in message.data.chunks(piece).enumerate() {
            let control = if nth == 0 { control.as_slice() } else { &[] };
            send(shell, fd, to, data, control);
        }
        if let Some(options) = own_options {
            options::usual_room(shell, fd, options, usual);
        }
        let fetched_files = files.into_iter().filter(|(_, fetched)| *fetched);
        fetched_files.for_each(|(fd, _)| shell.close(fd));
        if fetched {
            shell.close(fd);
        }
    }

    /// Step 6: what would have been in the way.
    fn finish(&self, shell: &mut Shell, process: &Process) {
        let making = self.making;
        for found in self.all() {
            let (id, socket, file) = found;
            if socket.peer_closed && self.birthplace(found) == process.pid {
                shell.close(making.ghost(id));
            }
            if self.maker(id) != process.pid {
                continue;
            }
            let fd = making.place(id);
            if socket.listening {
                listen(shell, fd, socket.backlog);
            }
            if socket.shutdown != 0 && !socket.peer_closed && !socket.listening {
                let args = [fd.into(), (socket.shutdown - 1).into()];
                let label = "shut it down as it was";
                shell.program.try_call(libc::SYS_shutdown, &args, label);
            }
            options::set(shell, fd, &socket.options);
            if is_path(&socket.name) && !matches!(self.origin(found), Origin::Server(_)) {
                if socket.file {
                    restore_file(shell, socket);
                } else {
                    unlink(shell, socket);
                }
            }
            let flags = u64::from(file.flags & STATUS_FLAGS);
            shell.fcntl(fd, libc::F_SETFL, flags, "set its flags");
            super::super::set_owner(shell, fd, file);
        }
    }

    /// Does something as whoever made the other end of a connection.
    fn as_before(
        &self,
        shell: &mut Shell,
        process: &Process,
        socket: &UnixSocket,
        work: impl FnOnce(&mut Shell),
    ) {
        identity::as_user(
            shell,
            process,
            self.ours,
            (socket.peer_uid, socket.peer_gid),
            work,
        );
    }

    fn as_itself(&self, shell: &mut Shell, process: &Process, work: impl FnOnce(&mut Shell)) {
        let own = process.threads.first().and_then(|t| t.credentials.as_ref());
        let own = own.map_or((0, 0), |own| (own.euid, own.egid));
        identity::as_user(shell, process, self.ours, own, work);
    }
}

/// Why a name cannot be had on this host.
pub(crate) fn check(file: &OpenFile, network: Network, root: u32) -> Option<Refusal> {
    let (_, socket, _) = unix(file)?;
    // Abstract names are of a network namespace.
    let free = socket.name.is_empty() || (network.own && !is_path(&socket.name));
    if free || !taken(socket) {
        return None;
    }
    Some(Refusal {
        pid: root,
        what: format!("Unix socket {}", words(&socket.name)),
        why: "its name is taken".to_owned(),
        advice: "end the program that has it, or move the file of that name away".to_owned(),
    })
}

fn words(name: &[u8]) -> String {
    String::from_utf8_lossy(name).replace('\0', "@")
}

/// struct sockaddr_un and its length, after changing to where a relative name leads from.
fn address(shell: &mut Shell, socket: &UnixSocket, name: &[u8]) -> (Blob, usize) {
    if is_path(name) && !name.starts_with(b"/") {
        let directory = shell.program.string(&socket.directory);
        let label = format!("change to {}", socket.directory);
        shell
            .program
            .must(libc::SYS_chdir, &[directory.into()], label);
    }
    let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.extend(name);
    if is_path(name) {
        bytes.push(0);
    }
    let length = bytes.len();
    (shell.program.bytes(bytes), length)
}

fn connect(shell: &mut Shell, fd: u32, socket: &UnixSocket, name: &[u8]) {
    let (address, length) = address(shell, socket, name);
    let args = [fd.into(), address.into(), length.into()];
    let label = format!("connect to {}", words(name));
    shell.program.must(libc::SYS_connect, &args, label);
}

fn listen(shell: &mut Shell, fd: u32, backlog: u32) {
    let args = [fd.into(), backlog.into()];
    shell.program.must(libc::SYS_listen, &args, "listen");
}

fn unlink(shell: &mut Shell, socket: &UnixSocket) {
    let (address, _) = address(shell, socket, &socket.name);
    let label = format!("delete {} again", words(&socket.name));
    let args = [Arg::Blob(address, 2)];
    shell.program.try_call(libc::SYS_unlink, &args, label);
}

fn restore_file(shell: &mut Shell, socket: &UnixSocket) {
    let (address, _) = address(shell, socket, &socket.name);
    let path = Arg::Blob(address, 2);
    let args = [path, socket.uid.into(), socket.gid.into()];
    let label = "give the socket file to its owner";
    shell.program.must(libc::SYS_chown, &args, label);
    let args = [path, socket.mode.into()];
    let label = "set the socket file's permissions";
    shell.program.must(libc::SYS_chmod, &args, label);
}

fn pair(shell: &mut Shell, kind: u32, first: u32, second: u32) {
    let both = shell.program.output(8);
    let flags = kind | (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;
    let args = [libc::AF_UNIX.into(), flags.into(), 0.into(), both.into()];
    let label = "make a pair of Unix sockets";
    shell.program.must(libc::SYS_socketpair, &args, label);
    let (one, other) = (shell.numbers.allocate(), shell.numbers.allocate());
    shell.rename(one, first, true);
    shell.rename(other, second, true);
}

/// Ancillary data (cmsg(3)): credentials, then descriptors.
fn control(message: &Message, files: &[u32]) -> Vec<u8> {
    let mut control = Vec::new();
    let mut add = |kind: i32, words: &[u32]| {
        let length = 16 + 4 * words.len();
        control.extend((length as u64).to_ne_bytes());
        control.extend(libc::SOL_SOCKET.to_ne_bytes());
        control.extend(kind.to_ne_bytes());
        control.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        control.resize(control.len().next_multiple_of(8), 0);
    };
    if message.credentials {
        let words = [message.pid, message.uid, message.gid];
        add(libc::SCM_CREDENTIALS, &words);
    }
    if !files.is_empty() {
        add(libc::SCM_RIGHTS, files);
    }
    control
}

fn send(shell: &mut Shell, fd: u32, to: Option<(Blob, usize)>, data: &[u8], control: &[u8]) {
    let program = &mut shell.program;
    let bytes = program.bytes(data);
    let vector = program.words(&[0, data.len() as u64]);
    program.point(vector, 0, bytes);
    let ancillary = program.bytes(control);
    // struct msghdr.
    let named = to.map_or(0, |(_, length)| length as u64);
    let header = [0, named, 0, 1, 0, control.len() as u64, 0];
    let header = program.words(&header);
    if let Some((address, _)) = to {
        program.point(header, 0, address);
    }
    program.point(header, 16, vector);
    if !control.is_empty() {
        program.point(header, 32, ancillary);
    }
    let args = [fd.into(), header.into(), libc::MSG_NOSIGNAL.into()];
    let label = format!("send {} bytes", data.len());
    let length = data.len() as u64;
    program.call(
        libc::SYS_sendmsg,
        &args,
        remote::Expect::Exactly(length),
        label,
    );
}
