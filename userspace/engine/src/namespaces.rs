//! Namespaces that the whole job is in and that ckptd is not (namespaces(7)): made by its first program, or by an earlier restore that
//! was to keep two copies of a job apart.

use std::fs::File;
use std::os::fd::AsFd;

use images::proto::{Credentials, Namespaces, Process, Snapshot};
use nix::sched::{CloneFlags, setns};
use remote::Program;

use crate::{Refusal, procfs};

mod user;

/// Names in /proc/PID/ns, of those that a thread can visit.
const KINDS: [(&str, CloneFlags); 3] = [
    ("net", CloneFlags::CLONE_NEWNET),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
];
// include/uapi/linux/sockios.h
const SIOCSIFFLAGS: u64 = 0x8914;

fn link(pid: u32, kind: &str) -> Option<String> {
    procfs::link(&format!("/proc/{pid}/ns/{kind}")).ok()
}

/// Whether a process is in another namespace than we are; one that has ended is in none.
pub(crate) fn differs(pid: u32, kind: &str) -> bool {
    let theirs = link(pid, kind);
    theirs.is_some() && theirs != link(std::process::id(), kind)
}

/// What a job is to have: what it had, and if it is to be kept apart from what runs here, all that does so.
pub(crate) fn wanted(snapshot: &Snapshot, apart: bool) -> Option<Namespaces> {
    let had = snapshot.namespaces.clone();
    if !apart {
        return had;
    }
    Some(Namespaces {
        network: true,
        ipc: true,
        uts: true,
        loopback: true,
        mounts: true,
        user: had.and_then(|had| had.user),
        ..name()
    })
}

/// Host and domain name, as we see them.
fn name() -> Namespaces {
    let text = |path: &str| {
        let text = remote::sys::read_text(path).unwrap_or_default();
        text.trim_end().to_owned()
    };
    Namespaces {
        hostname: text("/proc/sys/kernel/hostname"),
        domain: text("/proc/sys/kernel/domainname"),
        ..Default::default()
    }
}

/// This thread is in the namespaces of a process for as long as this is there: what the kernel tells of sockets and System V objects is of
/// them.
pub(crate) struct Visit {
    home: Vec<(File, CloneFlags)>,
    found: Option<Namespaces>,
    /// Why the user namespace cannot be made again.
    user: Option<String>,
}

impl Visit {
    /// # Errors
    /// No right to (CAP_SYS_ADMIN).
    pub(crate) fn to(pid: u32) -> std::io::Result<Self> {
        let mut this = Self {
            home: Vec::new(),
            found: None,
            user: None,
        };
        let mut found = Namespaces {
            mounts: differs(pid, "mnt"),
            ..Default::default()
        };
        for (kind, flag) in KINDS {
            if !differs(pid, kind) {
                continue;
            }
            let home = File::open(format!("/proc/thread-self/ns/{kind}"))?;
            let there = File::open(format!("/proc/{pid}/ns/{kind}"))?;
            setns(there.as_fd(), flag)?;
            this.home.push((home, flag));
            match kind {
                "net" => found.network = true,
                "ipc" => found.ipc = true,
                _ => found.uts = true,
            }
        }
        if found.uts {
            let name = name();
            (found.hostname, found.domain) = (name.hostname, name.domain);
        }
        if found.network {
            found.loopback = read("/proc/thread-self/net/fib_trie").contains("127.0.0.1");
        }
        match user::of(pid) {
            Ok(user) => found.user = user,
            Err(why) => this.user = Some(why),
        }
        let any = found.user.is_some() || found.mounts;
        this.found = (!this.home.is_empty() || any).then_some(found);
        Ok(this)
    }

    /// Those of the job, as they are to be made again.
    pub(crate) fn found(&self) -> Option<Namespaces> {
        self.found.clone()
    }

    /// What of them cannot be made again.
    pub(crate) fn check(&self, root: u32) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        if let Some(why) = &self.user {
            refusals.push(Refusal {
                pid: root,
                what: "its user namespace".to_owned(),
                why: why.clone(),
                advice: "run ckptd inside the container".to_owned(),
            });
        }
        if self.found.as_ref().is_some_and(|found| found.network) {
            let text = read("/proc/thread-self/net/dev");
            let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
            for name in names
                .map(|(name, _)| name.trim())
                .filter(|name| *name != "lo")
            {
                refusals.push(Refusal {
                    pid: root,
                    what: format!("network interface {name}"),
                    why: "the job has a network of its own, of which only the loopback interface can be made again".to_owned(),
                    advice: "give the job no further interfaces, or the network of the host".to_owned(),
                });
            }
        }
        refusals
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        for (home, flag) in self.home.drain(..) {
            if let Err(errno) = setns(home.as_fd(), flag) {
                tracing::error!("cannot go back to the namespaces of before: {errno}");
            }
        }
    }
}

fn read(path: &str) -> String {
    remote::sys::read_text(path).unwrap_or_default()
}

/// Mounts as a process sees them, without what differs between two copies of the same: device, what of it, where.
fn mounts(pid: u32) -> Vec<String> {
    let text = read(&format!("/proc/{pid}/mountinfo"));
    let line = |line: &str| {
        line.split(' ')
            .skip(2)
            .take(3)
            .collect::<Vec<_>>()
            .join(" ")
    };
    text.lines().map(line).collect()
}

/// A mount that a job has and we have not, where that is the job's doing: with a pid namespace of its own comes a copy of our mounts that a
/// restore has made.
pub(crate) fn own_mount(pid: u32) -> Option<String> {
    if !differs(pid, "mnt") || differs(pid, "pid") {
        return None;
    }
    let ours = mounts(std::process::id());
    let theirs = mounts(pid);
    let mount = theirs.iter().find(|mount| !ours.contains(mount))?;
    Some(mount.split(' ').nth(2).unwrap_or_default().to_owned())
}

/// Credentials as they are inside the job's user namespace, if it has one; those who could not be had there are told.
pub(crate) fn translate(processes: &mut [Process], own: Option<&Namespaces>) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let Some(user) = own.and_then(|own| own.user.as_ref()) else {
        return refusals;
    };
    for process in processes {
        let credentials = process
            .threads
            .iter_mut()
            .filter_map(|thread| thread.credentials.as_mut());
        for credentials in credentials {
            if let Err(why) = user::translate(credentials, user) {
                refusals.push(Refusal {
                    pid: process.pid,
                    what: "its user or group".to_owned(),
                    why,
                    advice: "start it as a user of its user namespace".to_owned(),
                });
            }
        }
    }
    refusals
}

/// What a process of ours may once it is in them.
pub(crate) fn entered(ours: &Credentials, own: &Namespaces) -> Credentials {
    own.user
        .as_ref()
        .map_or_else(|| ours.clone(), |user| user::entered(ours, user))
}

/// Files of the first process in a new user namespace, and what is to be written there before it goes on.
pub(crate) fn maps(own: &Namespaces) -> Vec<(&'static str, String)> {
    own.user.iter().flat_map(user::maps).collect()
}

/// What no host could make again.
pub(crate) fn impossible(snapshot: &Snapshot) -> Vec<Refusal> {
    let own = snapshot.namespaces.as_ref();
    let user = own.and_then(|own| own.user.as_ref());
    user.map_or_else(Vec::new, |_| user::impossible(snapshot))
}

/// Why they cannot be made here.
pub(crate) fn check(snapshot: &Snapshot, ours: &Credentials) -> Option<Refusal> {
    let user = snapshot.namespaces.as_ref()?.user.as_ref()?;
    user::check(snapshot, user, ours)
}

/// The namespaces a restored job gets besides those for its pids and mounts.
pub(crate) fn flags(own: &Namespaces) -> i32 {
    let wanted = [own.network, own.ipc, own.uts];
    let kinds = KINDS.iter().zip(wanted).filter(|(_, wanted)| *wanted);
    let first = own.user.as_ref().map_or(0, |_| libc::CLONE_NEWUSER);
    kinds.fold(first, |all, ((_, flag), _)| all | flag.bits())
}

/// Makes new namespaces what they were; to be run by a process in them.
pub(crate) fn settle(program: &mut Program, own: &Namespaces) {
    if own.uts {
        for (nr, name) in [
            (libc::SYS_sethostname, &own.hostname),
            (libc::SYS_setdomainname, &own.domain),
        ] {
            let bytes = program.bytes(name.as_bytes());
            let label = format!("be called {name}");
            program.must(nr, &[bytes.into(), name.len().into()], label);
        }
    }
    if own.network && own.loopback {
        // struct ifreq: a name of 16 bytes, flags.
        let mut request = b"lo".to_vec();
        request.resize(16, 0);
        request.extend((libc::IFF_UP as u16).to_ne_bytes());
        request.resize(40, 0);
        let request = program.bytes(request);
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let args = [libc::AF_INET.into(), kind.into(), 0.into()];
        let fd = program.must(libc::SYS_socket, &args, "make a socket");
        let args = [remote::Arg::Result(fd), SIOCSIFFLAGS.into(), request.into()];
        program.must(libc::SYS_ioctl, &args, "bring the loopback interface up");
        program.must(libc::SYS_close, &[remote::Arg::Result(fd)], "close it");
    }
}
