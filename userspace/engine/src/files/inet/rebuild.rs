//! TCP sockets are made again in steps, like Unix sockets. Connections come one after the other, so that each is accepted as the one it is.

use images::proto::open_file::Kind;
use images::proto::{OpenFile, Process, Snapshot, TcpSocket};
use remote::{Expect, sockets};

use super::{address, outside};
use crate::TcpPolicy;
use crate::files::{Making, STATUS_FLAGS, Shell, options};
use crate::host::Host;
use crate::plan::{Stages, Step};

const BACKLOG: u32 = 4096;
const PIECE: usize = 64 << 10;
const IP: u32 = libc::IPPROTO_IP as u32;
// include/uapi/linux/in.h
const IP_LOCAL_PORT_RANGE: u32 = 51;
const BIND_ADDRESS_NO_PORT: u32 = libc::IP_BIND_ADDRESS_NO_PORT as u32;
const SOCKET: u32 = libc::SOL_SOCKET as u32;
/// struct timeval: nothing on this host takes as long, but for a firewall between.
const PATIENCE: [u64; 2] = [5, 0];

type Socket<'a> = (u32, &'a TcpSocket, &'a OpenFile);

fn tcp(file: &OpenFile) -> Option<Socket<'_>> {
    match &file.kind {
        Some(Kind::Tcp(socket)) => Some((file.id, socket, file)),
        _ => None,
    }
}

/// A connection: its two ends, and the socket that accepts it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    client: u32,
    server: u32,
    listener: Option<u32>,
}

/// All TCP sockets of a job.
pub(crate) struct Connections<'a> {
    making: &'a Making<'a>,
    policy: TcpPolicy,
    /// See [`Host::ports`].
    ports: Option<(u16, u16)>,
}

impl<'a> Connections<'a> {
    pub(crate) fn new(making: &'a Making<'a>, policy: TcpPolicy, host: &Host) -> Self {
        Self {
            making,
            policy,
            ports: host.ports,
        }
    }

    fn all(&self) -> impl Iterator<Item = Socket<'a>> + use<'a> {
        self.making.files.iter().filter_map(tcp)
    }

    fn maker(&self, id: u32) -> u32 {
        self.making.maker(id).map_or(0, |maker| maker.pid)
    }

    fn find(&self, id: u32) -> Option<Socket<'a>> {
        self.making.file(id).and_then(tcp)
    }

    /// The listening socket that accepts connections to an address.
    fn listener(&self, socket: &TcpSocket) -> Option<u32> {
        let at = address(&socket.name)?;
        let (ip, port) = (at.ip().to_canonical(), at.port());
        let fits = |own: std::net::SocketAddr| {
            let own_ip = own.ip().to_canonical();
            own.port() == port && (own_ip == ip || own.ip().is_unspecified())
        };
        let mut listening = self.all().filter(|(_, s, _)| s.listening);
        let found = listening.find(|(_, s, _)| address(&s.name).is_some_and(fits));
        found.map(|(id, ..)| id)
    }

    /// Both ends of each connection once. The end that a listening socket has the address of was accepted; else the younger.
    fn connections(&self) -> Vec<Connection> {
        let mut all = Vec::new();
        for (id, socket, _) in self.all().filter(|(_, s, _)| s.other != 0) {
            let other = self.all().find(|(_, s, _)| s.inode == socket.other);
            let Some((peer_id, peer, _)) = other.filter(|(other, ..)| *other > id) else {
                continue;
            };
            let (mine, its) = (self.listener(socket), self.listener(peer));
            let accepted = match (mine, its) {
                (Some(_), None) => true,
                (None, Some(_)) => false,
                _ => socket.inode > peer.inode,
            };
            all.push(if accepted {
                Connection {
                    client: peer_id,
                    server: id,
                    listener: mine,
                }
            } else {
                Connection {
                    client: id,
                    server: peer_id,
                    listener: its,
                }
            });
        }
        all
    }

    fn make(&self, shell: &mut Shell, socket: &TcpSocket, to: u32, all: bool) {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        let args = [socket.domain.into(), kind.into(), libc::IPPROTO_TCP.into()];
        let fd = shell.open(libc::SYS_socket, &args, "make a TCP socket");
        shell.rename(fd, to, true);
        if all {
            options::set(shell, to, &early(socket));
        }
        // Remains of the connections from before do not count.
        let on = 1i32.to_ne_bytes();
        options::set_one(shell, to, SOCKET, libc::SO_REUSEADDR as u32, &on);
        let patience: Vec<u8> = PATIENCE
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            options::set_one(shell, to, SOCKET, name as u32, &patience);
        }
    }

    /// Whether connect(2) is to choose its port, as it did: connections to different addresses may then share one, also with what is
    /// left of earlier ones, which bind(2) does not allow.
    fn chooses(&self, socket: &TcpSocket) -> bool {
        let port = address(&socket.name).map_or(0, |at| at.port());
        let within = |(from, to)| (from..=to).contains(&port);
        !socket.peer.is_empty() && self.ports.is_some_and(within)
    }

    fn bind(&self, shell: &mut Shell, fd: u32, name: &[u8]) {
        let Some(at) = address(name) else { return };
        if at.port() == 0 && at.ip().is_unspecified() {
            return;
        }
        let address = shell.program.bytes(name);
        let args = [fd.into(), address.into(), name.len().into()];
        shell
            .program
            .must(libc::SYS_bind, &args, format!("bind it to {at}"));
    }

    /// All stages of it: one connection after the other, then what is on its way in all of them.
    pub(crate) fn rebuild(&self, stages: &mut Stages<'_>, host: &Host) {
        stages.stage("make TCP sockets", |shell, process| {
            self.create(shell, process);
        });
        for connection in self.connections() {
            stages.stage("listen", |shell, process| {
                self.prepare(shell, process, connection);
            });
            stages.stage("connect", |shell, process| {
                self.connect(shell, process, connection);
            });
            stages.stage("accept", |shell, process| {
                self.accept(shell, process, connection);
            });
        }
        for client in self.waiting() {
            stages.stage("connect", |shell, process| {
                self.connect_one(shell, process, client);
            });
        }
        stages.stage("take over TCP sockets", |shell, process| {
            self.hand_over(shell, process);
        });
        stages.stage("fill TCP sockets", |shell, process| {
            self.fill(shell, process, host.send_buffer);
        });
        stages.stage("finish TCP sockets", |shell, process| {
            self.finish(shell, process);
        });
    }

    /// Step 1: sockets and their addresses.
    fn create(&self, shell: &mut Shell, process: &Process) {
        let servers: Vec<u32> = self.connections().iter().map(|c| c.server).collect();
        for (id, socket, _) in self.all() {
            if self.maker(id) != process.pid || servers.contains(&id) {
                continue;
            }
            let place = self.making.place(id);
            self.make(shell, socket, place, true);
            if let Some(outside) = outside::kept(socket, self.policy) {
                outside::make(shell, place, socket, outside);
                continue;
            }
            if socket.ended || socket.outside.is_some() {
                outside::make_ended(shell, place, socket, !socket.ended);
                continue;
            }
            if self.chooses(socket) {
                choose(shell, place, &socket.name);
            } else {
                self.bind(shell, place, &socket.name);
            }
            if socket.listening {
                listen(shell, place, BACKLOG);
            }
        }
    }

    /// Step 2, for each connection: the accepting side is there if it is not anyway,
    fn prepare(&self, shell: &mut Shell, process: &Process, connection: Connection) {
        let server = self.find(connection.server);
        let Some((id, socket, _)) = server.filter(|_| connection.listener.is_none()) else {
            return;
        };
        if self.maker(id) == process.pid {
            let fd = self.making.spare(id);
            self.make(shell, socket, fd, false);
            self.bind(shell, fd, &socket.name);
            listen(shell, fd, 1);
        }
    }

    /// the other side connects,
    fn connect(&self, shell: &mut Shell, process: &Process, connection: Connection) {
        self.connect_one(shell, process, connection.client);
    }

    fn connect_one(&self, shell: &mut Shell, process: &Process, client: u32) {
        let client = self.find(client);
        let Some((id, socket, _)) = client.filter(|(id, ..)| self.maker(*id) == process.pid) else {
            return;
        };
        let address_ = shell.program.bytes(socket.peer.clone());
        let fd = self.making.place(id);
        let args = [fd.into(), address_.into(), socket.peer.len().into()];
        let at = address(&socket.peer).map_or_else(String::new, |at| at.to_string());
        shell
            .program
            .must(libc::SYS_connect, &args, format!("connect to {at}"));
    }

    /// and is accepted.
    fn accept(&self, shell: &mut Shell, process: &Process, connection: Connection) {
        let by = connection.listener.unwrap_or(connection.server);
        if self.maker(by) != process.pid {
            return;
        }
        let from = match connection.listener {
            Some(listener) => self.making.place(listener),
            None => self.making.spare(by),
        };
        let flags = libc::SOCK_CLOEXEC;
        let args = [from.into(), 0.into(), 0.into(), flags.into()];
        let fd = shell.open(libc::SYS_accept4, &args, "accept its connection");
        shell.rename(fd, self.making.place(connection.server), true);
        if connection.listener.is_none() {
            shell.close(from);
        }
    }

    /// Those that nobody has accepted, in order.
    fn waiting(&self) -> Vec<u32> {
        let inodes = self.all().flat_map(|(_, socket, _)| &socket.waiting);
        let ids = inodes.filter_map(|inode| {
            let mut all = self.all();
            all.find(|(_, socket, _)| socket.inode == *inode)
                .map(|(id, ..)| id)
        });
        ids.collect()
    }

    /// The last steps of all: connections that are kept go on where they were.
    pub(crate) fn go_on(&self, stages: &mut Stages<'_>) {
        let kept = self
            .all()
            .filter(|(_, s, _)| outside::kept(s, self.policy).is_some());
        stages.extend(kept.filter_map(|(file, ..)| {
            let maker = self.making.maker(file)?;
            let held = maker.descriptors.iter().find(|d| d.file == file)?;
            let (pid, fd) = (maker.pid, held.fd);
            Some(Step::GoOn { pid, fd, file })
        }));
    }

    /// Step 3: accepted sockets go to who passes them on.
    fn hand_over(&self, shell: &mut Shell, process: &Process) {
        for connection in self.connections() {
            let id = connection.server;
            let from = self.maker(connection.listener.unwrap_or(id));
            if self.maker(id) == process.pid && from != process.pid {
                let place = self.making.place(id);
                let fd = shell.fetch(from, place);
                shell.rename(fd, place, true);
            }
        }
    }

    /// Step 4: what had arrived is sent again, and ends that write no more say so.
    fn fill(&self, shell: &mut Shell, process: &Process, usual: i32) {
        for (id, socket, _) in self.all().filter(|(_, s, _)| s.other != 0) {
            let other = self.all().find(|(_, s, _)| s.inode == socket.other);
            let Some((_, other, _)) = other.filter(|_| self.maker(id) == process.pid) else {
                continue;
            };
            let fd = self.making.place(id);
            let rest = [other.unread.as_slice(), &socket.unsent].concat();
            if !rest.is_empty() {
                options::make_room(shell, fd);
                send(shell, fd, &rest);
                options::usual_room(shell, fd, &socket.options, usual);
            }
            if socket.shutdown & 2 != 0 {
                let args = [fd.into(), libc::SHUT_WR.into()];
                let label = "write no more";
                shell.program.must(libc::SYS_shutdown, &args, label);
            }
        }
    }

    /// Step 5: what would have been in the way.
    fn finish(&self, shell: &mut Shell, process: &Process) {
        for (id, socket, file) in self.all() {
            if self.maker(id) != process.pid {
                continue;
            }
            let fd = self.making.place(id);
            if socket.listening {
                listen(shell, fd, socket.backlog);
            }
            if socket.shutdown & 1 != 0 && socket.other != 0 {
                let args = [fd.into(), libc::SHUT_RD.into()];
                shell
                    .program
                    .must(libc::SYS_shutdown, &args, "read no more");
            }
            for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
                options::set_one(shell, fd, SOCKET, name as u32, &[0; 16]);
            }
            if self.chooses(socket) {
                options::set_one(shell, fd, IP, IP_LOCAL_PORT_RANGE, &[0; 4]);
                options::set_one(shell, fd, IP, BIND_ADDRESS_NO_PORT, &[0; 4]);
            }
            // In repair mode it is what makes room for the same address.
            if outside::kept(socket, self.policy).is_none() {
                let off = 0i32.to_ne_bytes();
                options::set_one(shell, fd, SOCKET, libc::SO_REUSEADDR as u32, &off);
            }
            options::set(shell, fd, &late(socket));
            let flags = u64::from(file.flags & STATUS_FLAGS);
            shell.fcntl(fd, libc::F_SETFL, flags, "set its flags");
            super::super::set_owner(shell, fd, file);
        }
    }
}

/// Sends so many bytes, for which there is room.
pub(super) fn send(shell: &mut Shell, fd: u32, bytes: &[u8]) {
    for piece in bytes.chunks(PIECE) {
        let data = shell.program.bytes(piece);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let args = [fd.into(), data.into(), piece.len().into(), flags.into()];
        let label = format!("send {} bytes", piece.len());
        let length = Expect::Exactly(piece.len() as u64);
        shell.program.call(libc::SYS_sendto, &args, length, label);
    }
}

/// Binds a socket to its address, and has connect(2) choose its port.
fn choose(shell: &mut Shell, fd: u32, name: &[u8]) {
    let Some(mut at) = address(name) else { return };
    let port = u32::from(at.port());
    let only = (port << 16 | port).to_ne_bytes();
    options::set_one(shell, fd, IP, IP_LOCAL_PORT_RANGE, &only);
    options::set_one(shell, fd, IP, BIND_ADDRESS_NO_PORT, &1i32.to_ne_bytes());
    at.set_port(0);
    let mut any = name.to_vec();
    any.splice(2..4, [0, 0]);
    let address = shell.program.bytes(any);
    let args = [fd.into(), address.into(), name.len().into()];
    let label = format!("bind it to {at}, and port {port} when it connects");
    shell.program.must(libc::SYS_bind, &args, label);
}

fn listen(shell: &mut Shell, fd: u32, backlog: u32) {
    let args = [fd.into(), backlog.into()];
    shell.program.must(libc::SYS_listen, &args, "listen");
}

/// Options that decide how a socket is bound.
fn early(socket: &TcpSocket) -> Vec<images::proto::SocketOption> {
    let of = |level: i32, names: &'static [i32]| {
        let options = socket.options.iter();
        options.filter(move |o| o.level == level as u32 && names.contains(&(o.name as i32)))
    };
    let socket_ = of(
        libc::SOL_SOCKET,
        &[libc::SO_REUSEPORT, libc::SO_BINDTODEVICE],
    );
    let ip = of(libc::IPPROTO_IP, &[libc::IP_FREEBIND, libc::IP_TRANSPARENT]);
    let ipv6 = of(
        libc::IPPROTO_IPV6,
        &[
            libc::IPV6_V6ONLY,
            libc::IPV6_FREEBIND,
            libc::IPV6_TRANSPARENT,
        ],
    );
    socket_.chain(ip).chain(ipv6).cloned().collect()
}

/// The others; IPV6_V6ONLY cannot be set any more.
fn late(socket: &TcpSocket) -> Vec<images::proto::SocketOption> {
    let early = early(socket);
    let options = socket.options.iter().filter(|o| !early.contains(o));
    options.cloned().collect()
}

/// Takes away what is left of the job's connections when their ends have gone: it would be in the way of the same addresses.
pub(crate) fn clear(snapshot: &Snapshot) {
    const SOCK_DESTROY: u16 = 21;
    // Any state but established, listening and closed: of those only connections that nobody has open are taken.
    let sockets = || snapshot.files.iter().filter_map(tcp);
    let own = |(_, socket, _): Socket<'_>| Some((address(&socket.name)?, address(&socket.peer)?));
    let listening = sockets().filter(|(_, socket, _)| socket.listening);
    let remains = listening
        .filter_map(|(_, socket, _)| address(&socket.name))
        .flat_map(|at| super::ends(at.port()))
        .filter(|(state, ..)| *state == super::TIME_WAIT)
        .map(|(_, from, to)| (from, to));
    for (from, to) in sockets().filter_map(own).chain(remains) {
        let family = if from.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        // struct inet_diag_req_v2.
        let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
        request.extend(u32::MAX.to_ne_bytes());
        request.extend(from.port().to_be_bytes());
        request.extend(to.port().to_be_bytes());
        for ip in [from.ip(), to.ip()] {
            let mut bytes = match ip {
                std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
                std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            bytes.resize(16, 0);
            request.extend(bytes);
        }
        request.extend([0; 4]);
        request.extend([0xff; 8]);
        let Ok(answers) = sockets::diagnose(&request, false) else {
            continue;
        };
        let Some(answer) = answers.first().filter(|answer| answer.len() >= 72) else {
            continue;
        };
        let orphan = answer[68..72] == [0; 4];
        if orphan && !matches!(answer[1], 1 | 7 | 10) {
            let _ = sockets::request(SOCK_DESTROY, &request);
        }
    }
}
