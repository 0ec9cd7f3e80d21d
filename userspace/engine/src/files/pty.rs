//! Pseudo terminals whose master is held inside the job: settings, what is on its way in them, and the sessions they control.
//!
//! What is on its way can only be read by taking it out, so the process that holds the master does that itself, and puts it
//! back in the same program: it is run to its end even if we die. A line that is not complete yet is kept too; an end of file
//! (Ctrl-D) typed ahead of its reader becomes a NUL.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{OpenFile, Process, Pty};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{posix_openpt, ptsname_r};
use remote::{Arg, Blob, Expect, Outcome, Program, sys};

use super::{Held, Making, STATUS_FLAGS, Shell, Why};
use crate::procfs::Stat;
use crate::{CheckpointError, Refusal};

// include/uapi/asm-generic/ioctls.h
const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TIOCEXCL: u64 = 0x540c;
const TIOCSCTTY: u64 = 0x540e;
const TIOCSPGRP: u64 = 0x5410;
const TIOCGWINSZ: u64 = 0x5413;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCPKT: u64 = 0x5420;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;
const TIOCGPTPEER: u64 = 0x5441;

/// Of a running job's master these stay as they are.
const KEPT: u32 = STATUS_FLAGS | libc::O_ASYNC as u32;
/// Major number of slaves (Documentation/admin-guide/devices.txt); the minor number is the index.
const SLAVE: u64 = 136;
/// What is typed ahead beyond this may arrive in more than one piece when it is put back (drivers/tty/tty_buffer.c).
const MOST_INPUT: usize = 1700;
/// The most a master's queues hold: 4095 bytes of its line discipline and 8 KiB before that.
const PIECE: usize = 4096;
const PIECES: usize = 3;

fn word(fd: &OwnedFd, request: u64) -> u32 {
    let bytes = sys::ioctl_read(fd, request, 4).unwrap_or_else(|_| vec![0; 4]);
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// `None` when the device is no pseudo terminal.
pub(crate) fn capture(held: &Held) -> Option<Result<Kind, Why>> {
    let device = held.meta.rdev();
    if device == libc::makedev(5, 2) {
        return Some(master(held));
    }
    let index = nix::sys::stat::minor(device) as u32;
    (nix::sys::stat::major(device) == SLAVE).then(|| {
        Ok(Kind::Pty(Pty {
            index,
            exclusive: word(&held.file, TIOCGEXCL) != 0,
            ..Default::default()
        }))
    })
}

fn master(held: &Held) -> Result<Kind, Why> {
    let read = |request, length| sys::ioctl_read(&held.file, request, length);
    let unreadable = |error| {
        (
            format!("its settings cannot be read: {error}"),
            "report this program".to_owned(),
        )
    };
    let termios = read(TCGETS2, 44).map_err(unreadable)?;
    let size = read(TIOCGWINSZ, 8).map_err(unreadable)?;
    let half = |at: usize| u32::from(u16::from_ne_bytes([size[2 * at], size[2 * at + 1]]));
    Ok(Kind::Pty(Pty {
        index: word(&held.file, TIOCGPTN),
        master: true,
        termios,
        rows: half(0),
        columns: half(1),
        width: half(2),
        height: half(3),
        packet: word(&held.file, TIOCGPKT) != 0,
        locked: word(&held.file, TIOCGPTLCK) != 0,
        exclusive: word(&held.file, TIOCGEXCL) != 0,
        hung_up: ready(&held.file, PollFlags::empty()).contains(PollFlags::POLLHUP),
        ..Default::default()
    }))
}

fn ready(fd: &OwnedFd, wanted: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(fd.as_fd(), wanted)];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    fds[0].revents().unwrap_or(PollFlags::empty())
}

fn pty(file: &OpenFile) -> Option<&Pty> {
    match &file.kind {
        Some(Kind::Pty(pty)) => Some(pty),
        _ => None,
    }
}

/// The master of a pseudo terminal of the job.
fn master_of(files: &[OpenFile], index: u32) -> Option<(&OpenFile, &Pty)> {
    files.iter().find_map(|file| {
        pty(file)
            .filter(|pty| pty.master && pty.index == index)
            .map(|pty| (file, pty))
    })
}

/// Runs a program in the leader of a process.
pub(crate) type Running<'a> = &'a mut dyn FnMut(u32, &Program) -> Result<Outcome, CheckpointError>;

/// Refuses slaves without their master, and reads what is on its way in the others.
pub(crate) fn finish(
    files: &mut [OpenFile],
    pending: &[(u32, Held)],
    run: Running<'_>,
    refuse: &mut dyn FnMut(&Held, Why),
) -> Result<(), CheckpointError> {
    for (id, held) in pending {
        let Some(end) = pty(&files[*id as usize - 1]).cloned() else {
            continue;
        };
        let slave = pending.iter().find(|(id, _)| {
            pty(&files[*id as usize - 1])
                .is_some_and(|other| !other.master && other.index == end.index)
        });
        if !end.master {
            if master_of(files, end.index).is_none() {
                let why = "this terminal belongs to a process outside of the job, and is not the one the job was started on";
                refuse(
                    held,
                    (
                        why.to_owned(),
                        "checkpoint the process that made it too, as one job".to_owned(),
                    ),
                );
            }
            continue;
        }
        // Nobody can have written to a terminal that was never opened.
        if end.locked || (slave.is_none() && !end.hung_up) {
            continue;
        }
        let slave = slave.map(|(_, slave)| &slave.file);
        if let Some(why) = unreadable(&end, held, slave) {
            refuse(held, why);
            continue;
        }
        let (program, input, output) = drain(&end, held);
        let outcome = run(held.pid, &program)?;
        let got = |(call, blob): &(usize, Blob)| {
            let n = outcome.result(*call).unwrap_or(0) as usize;
            outcome.output(*blob)[..n.min(PIECE)].to_vec()
        };
        if let Some(Kind::Pty(end)) = &mut files[*id as usize - 1].kind {
            end.input = got(&input);
            end.output = output.iter().flat_map(got).collect();
        }
    }
    Ok(())
}

/// Why what is on its way could not be put back.
fn unreadable(end: &Pty, master: &Held, slave: Option<&OwnedFd>) -> Option<Why> {
    let again = || "try again in a moment".to_owned();
    if end.packet && ready(&master.file, PollFlags::POLLPRI).contains(PollFlags::POLLPRI) {
        return Some((
            "it has a notice (packet mode) that its reader has not seen yet".to_owned(),
            again(),
        ));
    }
    let waiting = |fd: &OwnedFd| sys::bytes_waiting(fd).unwrap_or(0);
    let slave = slave?;
    if waiting(&master.file) > 0 && !ready(slave, PollFlags::POLLOUT).contains(PollFlags::POLLOUT) {
        return Some((
            "it is full of output, or stopped (Ctrl-S), with output waiting".to_owned(),
            again(),
        ));
    }
    let typed = waiting(slave);
    (typed > MOST_INPUT).then(|| {
        (
            format!("{typed} bytes were typed ahead of its reader, more than can be kept"),
            again(),
        )
    })
}

/// Takes everything out of both queues and puts it back. Gives the reading calls with their outputs: of the input, and of the output.
fn drain(end: &Pty, held: &Held) -> (Program, (usize, Blob), Vec<(usize, Blob)>) {
    let mut program = Program::new();
    let master = held.fd;
    let own = program.bytes(end.termios.clone());
    let quiet = program.bytes(quiet(&end.termios));
    let raw = program.bytes(without_lines(&end.termios));
    let set = |program: &mut Program, termios: Blob| {
        program.try_call(
            libc::SYS_ioctl,
            &[master.into(), TCSETS2.into(), termios.into()],
            "set the terminal",
        );
    };
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let slave = program.try_call(
        libc::SYS_ioctl,
        &[master.into(), TIOCGPTPEER.into(), flags.into()],
        "open the other end",
    );
    // FD_CLOEXEC, which is 1: the number of buffers to read into. Without the other end nothing is taken out.
    let one = program.try_call(
        libc::SYS_fcntl,
        &[Arg::Result(slave), libc::F_GETFD.into()],
        "is it open?",
    );
    let packet = |program: &mut Program, on: u32| {
        let on = program.bytes(on.to_ne_bytes());
        program.try_call(
            libc::SYS_ioctl,
            &[master.into(), TIOCPKT.into(), on.into()],
            "packet mode",
        );
    };
    if end.packet {
        packet(&mut program, 0);
    }
    let status = |program: &mut Program, flags: u32| {
        program.try_call(
            libc::SYS_fcntl,
            &[master.into(), libc::F_SETFL.into(), flags.into()],
            "set its flags",
        );
    };
    status(&mut program, held.flags & KEPT | libc::O_NONBLOCK as u32);
    set(&mut program, quiet);
    let take = |program: &mut Program, from: Arg| {
        let buffer = program.output(PIECE);
        let vector = program.words(&[0, PIECE as u64]);
        program.point(vector, 0, buffer);
        (
            program.try_call(
                libc::SYS_readv,
                &[from, vector.into(), Arg::Result(one)],
                "take out",
            ),
            buffer,
        )
    };
    let put = |program: &mut Program, to: Arg, (call, buffer): (usize, Blob)| {
        program.try_call(
            libc::SYS_write,
            &[to, buffer.into(), Arg::Result(call)],
            "put back",
        );
    };
    let output: Vec<_> = (0..PIECES)
        .map(|_| take(&mut program, master.into()))
        .collect();
    for &piece in &output {
        put(&mut program, Arg::Result(slave), piece);
    }
    set(&mut program, raw);
    let input = take(&mut program, Arg::Result(slave));
    set(&mut program, quiet);
    put(&mut program, master.into(), input);
    nudge(&mut program, Arg::Result(slave));
    set(&mut program, own);
    status(&mut program, held.flags & KEPT);
    if end.packet {
        packet(&mut program, 1);
    }
    program.try_call(
        libc::SYS_close,
        &[Arg::Result(slave)],
        "close the other end",
    );
    (program, input, output)
}

/// Waits until what was written to the master has arrived at the slave, before its settings change: polling flushes what is on its way
/// (drivers/tty/n_tty.c, n_tty_poll).
fn nudge(program: &mut Program, slave: Arg) {
    // An epoll takes a descriptor that is another call's result, which a set of bits cannot.
    let epoll = program.try_call(
        libc::SYS_epoll_create1,
        &[libc::EPOLL_CLOEXEC.into()],
        "watch the other end",
    );
    let event = program.bytes([&(libc::EPOLLIN as u32).to_ne_bytes()[..], &[0; 8]].concat());
    let args = [
        Arg::Result(epoll),
        libc::EPOLL_CTL_ADD.into(),
        slave,
        event.into(),
    ];
    program.try_call(libc::SYS_epoll_ctl, &args, "wait until it has arrived");
    program.try_call(libc::SYS_close, &[Arg::Result(epoll)], "stop watching");
}

/// `termios` (struct termios2) changed so that everything passes as it is, lines still being lines.
fn quiet(termios: &[u8]) -> Vec<u8> {
    let mut out = termios.to_vec();
    let mut keep = |at: usize, bits: u32| {
        let old = u32::from_ne_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
        out[at..at + 4].copy_from_slice(&(old & bits).to_ne_bytes());
    };
    // Without IXON a stopped terminal would start.
    keep(0, libc::IXON);
    keep(4, !libc::OPOST);
    keep(12, libc::ICANON | libc::EXTPROC);
    for character in [
        libc::VINTR,
        libc::VQUIT,
        libc::VERASE,
        libc::VKILL,
        libc::VEOF,
        libc::VSTART,
        libc::VSTOP,
        libc::VSUSP,
        libc::VREPRINT,
        libc::VWERASE,
        libc::VLNEXT,
    ] {
        out[17 + character] = 0;
    }
    out
}

fn without_lines(termios: &[u8]) -> Vec<u8> {
    let mut out = quiet(termios);
    out[12] &= !(libc::ICANON as u8);
    out
}

/// Finds the controlling terminals of sessions. `outer` are the processes' pids as we see them.
pub(crate) fn controlling(
    processes: &mut [Process],
    outer: &[u32],
    files: &[OpenFile],
    refusals: &mut Vec<Refusal>,
) {
    let stats: Vec<Stat> = outer
        .iter()
        .map(|&pid| Stat::read(pid).unwrap_or_default())
        .collect();
    let groups: Vec<(i64, u32)> = stats
        .iter()
        .zip(processes.iter())
        .map(|(stat, p)| (stat.field(5), p.pgid))
        .collect();
    for (process, stat) in processes.iter_mut().zip(&stats) {
        // new_encode_dev() of include/linux/kdev_t.h.
        let device = stat.field(7) as u64;
        let (major, index) = (
            device >> 8 & 0xfff,
            (device & 0xff | device >> 12 & 0xf_ff00) as u32,
        );
        if device == 0 || (process.sid != 0 && process.sid != process.pid) {
            continue;
        }
        let foreground = groups.iter().find(|(outer, _)| *outer == stat.field(8));
        process.foreground = foreground.map_or(0, |(_, group)| *group);
        if process.sid == 0 {
            process.outer_terminal = true;
            continue;
        }
        match master_of(files, index).filter(|_| major == SLAVE) {
            Some((file, _)) => process.terminal = file.id,
            None => refusals.push(Refusal {
                pid: process.pid,
                what: "its controlling terminal".to_owned(),
                why: "the terminal of its session belongs to a process outside of the job"
                    .to_owned(),
                advice: "checkpoint the process that made it too, as one job".to_owned(),
            }),
        }
    }
}

/// The indices of all pseudo terminals of a job.
pub(crate) fn indices(files: &[OpenFile]) -> impl Iterator<Item = u32> + '_ {
    files
        .iter()
        .filter_map(pty)
        .filter(|pty| pty.master)
        .map(|pty| pty.index)
}

fn ioctl(shell: &mut Shell, fd: u32, request: u64, argument: impl Into<Arg>, label: &str) {
    shell.program.must(
        libc::SYS_ioctl,
        &[fd.into(), request.into(), argument.into()],
        label,
    );
}

fn peer(shell: &mut Shell, master: u32, index: u32, flags: u32) -> u32 {
    let flags =
        flags & (libc::O_ACCMODE as u32 | STATUS_FLAGS) | (libc::O_NOCTTY | libc::O_CLOEXEC) as u32;
    shell.open(
        libc::SYS_ioctl,
        &[master.into(), TIOCGPTPEER.into(), flags.into()],
        format!("open /dev/pts/{index}"),
    )
}

/// How many indices below that of `file` are free when it is made; devpts gives the lowest.
fn free_below(making: &Making<'_>, file: &OpenFile, index: u32) -> usize {
    let order = |file: &OpenFile| {
        let maker = making.maker(file.id).map_or(0, |maker| maker.pid);
        (
            making
                .processes
                .iter()
                .position(|process| process.pid == maker),
            file.id,
        )
    };
    let earlier = |file: &&OpenFile, than: &OpenFile| order(file) < order(than);
    let made: Vec<u32> = making
        .files
        .iter()
        .filter(|other| earlier(other, file))
        .filter_map(|other| pty(other).filter(|pty| pty.master).map(|pty| pty.index))
        .collect();
    (0..index)
        .filter(|other| !making.terminals.contains(other) && !made.contains(other))
        .count()
}

/// NR_UNIX98_PTY_MAX (include/linux/tty.h).
const MOST: u32 = 1 << 20;

/// The indices up to the job's highest that others have on this host. /dev/pts does not show one whose master is closed while a process still
/// has its other end open (fs/devpts/inode.c, devpts_pty_kill and devpts_kill_index), so the kernel is asked for all that are free.
pub(crate) fn taken(files: &[OpenFile]) -> Vec<u32> {
    let Some(highest) = indices(files).max() else {
        return Vec::new();
    };
    let highest = highest.min(MOST);
    let (mut masters, mut free) = (Vec::new(), BTreeSet::new());
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    while let Ok(master) = posix_openpt(flags) {
        let name = ptsname_r(&master).unwrap_or_default();
        let index = name.rsplit('/').next().and_then(|index| index.parse().ok());
        free.extend(index);
        masters.push(master);
        // The lowest free one comes first.
        if index.is_none_or(|index: u32| index >= highest) {
            break;
        }
    }
    (0..=highest)
        .filter(|index| !free.contains(index))
        .collect()
}

/// Makes a pseudo terminal with all its ends when its master comes up. The process that makes it keeps each end at its place, whoever
/// it is for.
pub(crate) fn open(
    shell: &mut Shell,
    making: &Making<'_>,
    end: &Pty,
    file: &OpenFile,
) -> Option<u32> {
    let index = end.index;
    if !end.master {
        // Made with its master: fetched from there when that is another process than this.
        let (maker, me) = (
            making.maker(master_of(making.files, index)?.0.id)?.pid,
            making.maker(file.id)?.pid,
        );
        return (maker != me).then(|| shell.fetch(maker, making.place(file.id)));
    }
    let ptmx = |shell: &mut Shell| shell.open_path("/dev/ptmx", libc::O_RDWR as u32);
    let held: Vec<u32> = (0..free_below(making, file, index))
        .map(|_| ptmx(shell))
        .collect();
    let master = ptmx(shell);
    held.into_iter().for_each(|fd| shell.close(fd));
    // A futex call compares the number we got with the one we need.
    const FUTEX_CMP_REQUEUE: u64 = 4;
    let number = shell.program.output(8);
    ioctl(shell, master, TIOCGPTN, number, "ask for its number");
    let args = [
        number.into(),
        FUTEX_CMP_REQUEUE.into(),
        0.into(),
        0.into(),
        number.into(),
        index.into(),
    ];
    shell
        .program
        .must(libc::SYS_futex, &args, format!("it is /dev/pts/{index}"));
    let unlocked = shell.program.bytes([0; 8]);
    ioctl(shell, master, TIOCSPTLCK, unlocked, "unlock it");
    let size = [end.rows, end.columns, end.width, end.height]
        .map(|n| (n as u16).to_ne_bytes())
        .concat();
    let size = shell.program.bytes(size);
    ioctl(shell, master, TIOCSWINSZ, size, "set its size");
    let slaves = making
        .files
        .iter()
        .filter(|other| pty(other).is_some_and(|pty| !pty.master && pty.index == index));
    let slaves: Vec<&OpenFile> = slaves.collect();
    if !slaves.is_empty() || end.hung_up {
        let slave = peer(shell, master, index, libc::O_RDWR as u32);
        fill(shell, end, master, slave);
        for other in slaves {
            let fd = peer(shell, master, index, other.flags);
            shell.rename(fd, making.place(other.id), true);
            super::set_owner(shell, making.place(other.id), other);
        }
        shell.close(slave);
    }
    let termios = shell.program.bytes(end.termios.clone());
    ioctl(shell, master, TCSETS2, termios, "set the terminal");
    let on = shell.program.bytes(1u64.to_ne_bytes());
    if end.packet {
        ioctl(shell, master, TIOCPKT, on, "packet mode");
    }
    if end.exclusive {
        ioctl(shell, master, TIOCEXCL, 0, "let nobody else open it");
    }
    if end.locked {
        ioctl(shell, master, TIOCSPTLCK, on, "lock it");
    }
    shell.fcntl(
        master,
        libc::F_SETFL,
        u64::from(file.flags & STATUS_FLAGS),
        "set its flags",
    );
    Some(master)
}

/// Puts in what was on its way.
fn fill(shell: &mut Shell, end: &Pty, master: u32, slave: u32) {
    let quiet = shell.program.bytes(quiet(&end.termios));
    ioctl(
        shell,
        master,
        TCSETS2,
        quiet,
        "let everything pass as it is",
    );
    for (fd, data, what) in [
        (slave, &end.output, "output"),
        (master, &end.input, "input"),
    ] {
        for piece in data.chunks(PIECE) {
            let bytes = shell.program.bytes(piece);
            let args = [fd.into(), bytes.into(), piece.len().into()];
            let label = format!("put in {} bytes of {what}", piece.len());
            shell.program.call(
                libc::SYS_write,
                &args,
                Expect::Exactly(piece.len() as u64),
                label,
            );
        }
    }
    nudge(&mut shell.program, slave.into());
}

/// Keeps others from opening a slave again, when it is where it belongs.
pub(super) fn keep(shell: &mut Shell, fd: u32, file: &OpenFile) {
    if pty(file).is_some_and(|pty| !pty.master && pty.exclusive) {
        ioctl(shell, fd, TIOCEXCL, 0, "let nobody else open it");
    }
}

/// A slave, which its holder may have to fetch from where its master was made.
pub(crate) fn is_slave(file: &OpenFile) -> bool {
    pty(file).is_some_and(|pty| !pty.master)
}

/// The leader of a session gets its controlling terminal, and says which group is in the foreground.
pub(crate) fn control(shell: &mut Shell, making: &Making<'_>, process: &Process) {
    let Some((file, end)) = making
        .file(process.terminal)
        .and_then(|file| Some((file, pty(file)?)))
    else {
        return;
    };
    let Some(maker) = making.maker(file.id).map(|maker| maker.pid) else {
        return;
    };
    let mine = maker == process.pid;
    let master = if mine {
        making.place(file.id)
    } else {
        shell.fetch(maker, making.place(file.id))
    };
    let slave = peer(shell, master, end.index, libc::O_RDWR as u32);
    ioctl(
        shell,
        slave,
        TIOCSCTTY,
        0,
        "make it the controlling terminal",
    );
    if process.foreground != 0 {
        let group = shell.program.words(&[u64::from(process.foreground)]);
        // The group may have ended with its last zombie.
        let args = [slave.into(), TIOCSPGRP.into(), group.into()];
        shell.program.try_call(
            libc::SYS_ioctl,
            &args,
            format!("put group {} into the foreground", process.foreground),
        );
    }
    shell.close(slave);
    if !mine {
        shell.close(master);
    }
}
