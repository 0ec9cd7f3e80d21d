//! System V objects (sysvipc(7)): which ones are the job's, and making them again under the ids they had.
//!
//! They belong to the host, not to processes, and outlive them: those that a dead job has left are in the way of its restore, and are
//! replaced by what the image says. Whether an object is one of those is told from its key, owner and size, and from who has used it.

use std::collections::HashMap;

use images::proto::{Credentials, IpcObject, Process, Snapshot, SystemVQueue};
pub(crate) use remote::ipc::Kind;
use remote::{Program, sys};

use crate::Refusal;
use crate::files::Shell;
use crate::plan::{Stages, Step};
use crate::procfs::{Stat, Status};

pub(crate) mod messages;
pub(crate) mod segments;
pub(crate) mod semaphores;

/// A line of /proc/sysvipc/{shm,sem,msg}.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line(HashMap<String, i64>);

impl Line {
    fn number(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0) as u64
    }

    /// Whether the process with a number that stands here is the one that is meant: the numbers of processes that have ended are given
    /// to others, who were started after all that was done with the object.
    fn is_by(&self, pid: u32) -> bool {
        let times = ["ctime", "otime", "stime", "rtime", "atime", "dtime"];
        let last = times.map(|name| self.number(name)).into_iter().max();
        began(pid).map(|began| began / NS_PER_S) <= last
    }

    fn id(&self, kind: Kind) -> u32 {
        self.number(match kind {
            Kind::Segment => "shmid",
            Kind::Semaphores => "semid",
            Kind::Queue => "msqid",
        }) as u32
    }

    fn object(&self, kind: Kind) -> IpcObject {
        let number = |name: &str| self.number(name) as u32;
        IpcObject {
            id: self.id(kind),
            key: number("key") as i32,
            mode: number("perms") & 0o777,
            uid: number("uid"),
            gid: number("gid"),
            creator_uid: number("cuid"),
            creator_gid: number("cgid"),
        }
    }
}

fn table(kind: Kind) -> &'static str {
    match kind {
        Kind::Segment => "shm",
        Kind::Semaphores => "sem",
        Kind::Queue => "msg",
    }
}

/// All objects of a kind.
pub(crate) fn list(kind: Kind) -> Vec<Line> {
    let path = format!("/proc/sysvipc/{}", table(kind));
    parse(&std::fs::read_to_string(path).unwrap_or_default())
}

/// The first line names the columns (ipc/shm.c, sysvipc_shm_proc_show); the mode alone is octal.
fn parse(text: &str) -> Vec<Line> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let line = |line: &str| {
        let values = line.split_whitespace();
        let value = |(name, value): (&&str, &str)| {
            let base = if *name == "perms" { 8 } else { 10 };
            Some(((*name).to_owned(), i64::from_str_radix(value, base).ok()?))
        };
        Line(names.iter().zip(values).filter_map(value).collect())
    };
    lines.map(line).collect()
}

/// What a person calls it.
fn name(kind: Kind, object: &IpcObject) -> String {
    let kind = match kind {
        Kind::Segment => "shared memory segment",
        Kind::Semaphores => "semaphore set",
        Kind::Queue => "message queue",
    };
    format!("System V {kind} {} (key {:#x})", object.id, object.key)
}

/// What is known of a job whose objects are looked for.
pub(crate) struct Job<'a> {
    pub(crate) root: u32,
    /// Processes of the job: their pids as we see them, and inside the job.
    pub(crate) members: &'a HashMap<u32, u32>,
    pub(crate) processes: &'a [Process],
}

impl Job<'_> {
    fn refusal(&self, what: String, why: String, advice: &str) -> Refusal {
        Refusal {
            pid: self.root,
            what,
            why,
            advice: advice.to_owned(),
        }
    }

    /// Whether an object is the job's: by who has used it; one that nobody has used yet, by who has made it when. `Err`: a process
    /// outside uses it too.
    fn owns(&self, line: &Line, users: &[u32]) -> Result<bool, u32> {
        let used = |pid: &u32| line.is_by(*pid);
        let stranger = |pid: &&u32| !self.members.contains_key(pid) && used(pid) && is_alive(**pid);
        let member = users
            .iter()
            .any(|pid| self.members.contains_key(pid) && used(pid));
        match users.iter().find(stranger) {
            Some(&pid) if member => Err(pid),
            Some(_) => Ok(false),
            None if users.is_empty() => Ok(self.may_have_made(line)),
            None if !member && self.may_have_made(line) => {
                let (key, users) = (line.number("key") as u32, users.len());
                tracing::warn!(
                    "the System V object with key {key:#x} is left out: {users} processes that have ended used it last"
                );
                Ok(false)
            }
            None => Ok(member),
        }
    }

    fn may_have_made(&self, line: &Line) -> bool {
        self.has_uid(line.number("cuid") as u32) && line.number("ctime") >= self.began()
    }

    fn has_uid(&self, uid: u32) -> bool {
        let ids = |process: &Process| Some(process.threads.first()?.credentials.as_ref()?.euid);
        self.processes
            .iter()
            .any(|process| ids(process) == Some(uid))
    }

    /// When the first process of the job was started, in seconds since the epoch.
    fn began(&self) -> u64 {
        began(self.root).unwrap_or(u64::MAX) / NS_PER_S
    }

    /// Pids as they are inside.
    fn inner(&self, pid: u32) -> u32 {
        self.members.get(&pid).copied().unwrap_or(0)
    }
}

const NS_PER_S: u64 = 1_000_000_000;

/// When a process was started, in ns since the epoch.
fn began(pid: u32) -> Option<u64> {
    // Clock ticks of 10 ms since boot (USER_HZ).
    let after_boot = Stat::read(pid).ok()?.field(22) as u64 * 10_000_000;
    let boot = sys::clock(libc::CLOCK_REALTIME).saturating_sub(sys::clock(libc::CLOCK_BOOTTIME));
    Some(boot + after_boot)
}

/// Whether there is such a process that has not ended.
fn is_alive(pid: u32) -> bool {
    pid != 0 && Status::read(pid).is_ok_and(|status| !matches!(status.state(), 'Z' | 'X'))
}

/// Objects of this host that have ids of the job's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    present: Vec<Present>,
    /// Ids can be chosen (CONFIG_CHECKPOINT_RESTORE).
    chosen: bool,
    boot: String,
}

/// One of them.
#[derive(Debug, Clone)]
struct Present {
    kind: Kind,
    object: IpcObject,
    /// Bytes, or semaphores.
    size: u64,
    /// Who has used it, and of them who is alive.
    users: Vec<u32>,
    alive: Vec<u32>,
    attached: u64,
}

impl Host {
    pub(crate) fn probe(snapshot: &Snapshot) -> Self {
        let mut host = Self {
            chosen: std::path::Path::new("/proc/sys/kernel/shm_next_id").exists(),
            boot: crate::host::now().boot_id,
            ..Self::default()
        };
        let wanted: Vec<Wanted<'_>> = wanted(snapshot).collect();
        let taken = snapshot.host.as_ref().map_or(0, |host| host.taken_at);
        let own = |pid: u32| snapshot.processes.iter().any(|process| process.pid == pid);
        // A number of the job's may be somebody else's by now, who was started after the checkpoint.
        let alive = |pid: &u32| is_alive(*pid) && !(own(*pid) && began(*pid) > Some(taken));
        for kind in [Kind::Segment, Kind::Semaphores, Kind::Queue] {
            if !wanted.iter().any(|wanted| wanted.kind == kind) {
                continue;
            }
            for line in list(kind) {
                let object = line.object(kind);
                let conflicts = |w: &Wanted<'_>| w.kind == kind && conflict(w.object, &object);
                if !wanted.iter().any(conflicts) {
                    continue;
                }
                let (size, users) = match kind {
                    Kind::Segment => (line.number("size"), vec![line.number("cpid") as u32]),
                    Kind::Semaphores => semaphores::users(&line),
                    Kind::Queue => (0, messages::users(&line)),
                };
                host.present.push(Present {
                    kind,
                    object,
                    size,
                    alive: users
                        .iter()
                        .copied()
                        .filter(|pid| alive(pid) && line.is_by(*pid))
                        .collect(),
                    users,
                    attached: line.number("nattch"),
                });
            }
        }
        host
    }

    /// Whether an object that nobody had used is there still, or in use by now and so not the job's.
    fn keeps(&self, wanted: &Wanted<'_>) -> bool {
        let same = |present: &Present| present.object.id == wanted.object.id;
        let idle = |present: &Present| present.users.is_empty() || !present.alive.is_empty();
        let mut all = self.in_the_way(wanted.kind, wanted.object);
        wanted.unused && all.any(|present| same(present) && idle(present))
    }

    /// What has to make room for an object of the job's.
    fn in_the_way(&self, kind: Kind, object: &IpcObject) -> impl Iterator<Item = &Present> {
        let object = *object;
        self.present
            .iter()
            .filter(move |present| present.kind == kind && conflict(&object, &present.object))
    }

    /// Why an object of the job's cannot be made again here.
    fn check(&self, snapshot: &Snapshot, wanted: &Wanted<'_>) -> Option<Refusal> {
        let &Wanted {
            kind, object, size, ..
        } = wanted;
        let refusal = |why: String, advice: &str| {
            Some(Refusal {
                pid: snapshot.root,
                what: name(kind, object),
                why,
                advice: advice.to_owned(),
            })
        };
        if !self.chosen {
            let advice = "restore under a kernel that has it";
            let why = "this kernel lets nobody choose its id (CONFIG_CHECKPOINT_RESTORE)";
            return refusal(why.to_owned(), advice);
        }
        let same_boot = snapshot
            .host
            .as_ref()
            .is_some_and(|host| host.boot_id == self.boot);
        let pids: Vec<u32> = snapshot.processes.iter().map(|p| p.pid).collect();
        for present in self.in_the_way(kind, object) {
            let found = &present.object;
            if let Some(pid) = present.alive.first() {
                let why = format!("process {pid} uses one of that id or key now");
                return refusal(why, "end that process, or wait for its end");
            }
            if present.attached != 0 {
                let why = "processes of others are attached to one of that id or key now";
                return refusal(
                    why.to_owned(),
                    "`ipcs -mp` names them: end them, or wait for their end",
                );
            }
            // Ids count up: within one boot the same id is the same object.
            let known = same_boot
                || present
                    .users
                    .iter()
                    .all(|pid| *pid == 0 || pids.contains(pid));
            let same = (found.id, found.key, found.creator_uid, present.size)
                == (object.id, object.key, object.creator_uid, size);
            if !same || !known {
                let why = format!(
                    "the id or key has been taken by another, {} (key {:#x})",
                    found.id, found.key
                );
                let letter = match kind {
                    Kind::Segment => "m",
                    Kind::Semaphores => "s",
                    Kind::Queue => "q",
                };
                return refusal(
                    why,
                    &format!(
                        "remove that one if nobody needs it: ipcrm -{letter} {}",
                        found.id
                    ),
                );
            }
        }
        None
    }
}

/// Two objects that cannot be there at once.
fn conflict(a: &IpcObject, b: &IpcObject) -> bool {
    a.id == b.id || (a.key != 0 && a.key == b.key)
}

/// An object of the job's.
struct Wanted<'a> {
    kind: Kind,
    object: &'a IpcObject,
    /// Bytes, or semaphores.
    size: u64,
    /// Nobody had used it, so that it may be somebody else's.
    unused: bool,
}

fn wanted(snapshot: &Snapshot) -> impl Iterator<Item = Wanted<'_>> {
    let segments = snapshot.shared.iter().filter_map(|shared| {
        Some(Wanted {
            kind: Kind::Segment,
            object: shared.segment.as_ref()?.object.as_ref()?,
            size: shared.size,
            unused: false,
        })
    });
    let sets = snapshot.semaphores.iter().filter_map(|set| {
        Some(Wanted {
            kind: Kind::Semaphores,
            object: set.object.as_ref()?,
            size: set.semaphores.len() as u64,
            unused: !set.operated && set.semaphores.iter().all(|s| (s.value, s.pid) == (0, 0)),
        })
    });
    let queues = snapshot.queues.iter().filter_map(|queue| {
        Some(Wanted {
            kind: Kind::Queue,
            object: queue.object.as_ref()?,
            size: 0,
            unused: queue.messages.is_empty() && queue.sender == 0,
        })
    });
    segments.chain(sets).chain(queues)
}

/// Objects that a restore makes, by their ids.
fn made(snapshot: &Snapshot, host: &Host) -> Vec<(Kind, u32)> {
    let made = wanted(snapshot).filter(|wanted| !host.keeps(wanted));
    made.map(|wanted| (wanted.kind, wanted.object.id)).collect()
}

/// Makes and fills semaphores and queues; segments are made with the rest of shared memory.
pub(crate) fn rebuild(stages: &mut Stages<'_>, snapshot: &Snapshot, known: (&Host, &Credentials)) {
    let lasting = made(snapshot, known.0);
    let makes = |kind, object: Option<&IpcObject>| {
        object.is_some_and(|object| lasting.contains(&(kind, object.id)))
    };
    let first = stages.processes.first().map_or(0, |process| process.pid);
    stages.stage("make semaphores and queues", |shell, process| {
        if process.pid != first {
            return;
        }
        for set in &snapshot.semaphores {
            if makes(Kind::Semaphores, set.object.as_ref()) {
                semaphores::make(shell, process, known, set);
            }
        }
        for queue in &snapshot.queues {
            if makes(Kind::Queue, queue.object.as_ref()) {
                messages::make(shell, process, known, queue);
            }
        }
    });
    stages.extend(lasting.iter().map(|&(kind, id)| Step::Left { kind, id }));
    let alive: Vec<u32> = stages.processes.iter().map(|p| p.pid).collect();
    let sender = |queue: &SystemVQueue| {
        if alive.contains(&queue.sender) {
            queue.sender
        } else {
            first
        }
    };
    stages.stage("fill semaphores and queues", |shell, process| {
        for set in &snapshot.semaphores {
            semaphores::sign(shell, process, set);
        }
        for queue in &snapshot.queues {
            if sender(queue) == process.pid {
                messages::fill(shell, queue);
            }
        }
    });
}

/// Why objects of the job's cannot be made again on this host.
pub(crate) fn check(snapshot: &Snapshot, host: &Host) -> Vec<Refusal> {
    wanted(snapshot)
        .filter(|wanted| !host.keeps(wanted))
        .filter_map(|wanted| host.check(snapshot, &wanted))
        .collect()
}

/// Makes an object with its id, as the user who did. `call` makes it, given its key and the mode to make it with.
fn make(
    shell: &mut Shell,
    process: &Process,
    (host, ours): (&Host, &Credentials),
    kind: Kind,
    object: &IpcObject,
    call: impl FnOnce(&mut Program, &str),
) {
    for present in host.in_the_way(kind, object) {
        let id = present.object.id;
        let (nr, args) = remove(kind, id);
        let label = format!(
            "remove what the job has left of {}",
            name(kind, &present.object)
        );
        shell.program.must(nr, &args, label);
    }
    let path = format!("/proc/sys/kernel/{}_next_id", table(kind));
    let fd = shell.open_path(&path, libc::O_WRONLY as u32);
    let text = object.id.to_string();
    let blob = shell.program.bytes(text.as_bytes());
    let args = [fd.into(), blob.into(), text.len().into()];
    shell
        .program
        .must(libc::SYS_write, &args, format!("choose id {text}"));
    shell.close(fd);
    let creator = (object.creator_uid, object.creator_gid);
    crate::identity::as_user(shell, process, ours, creator, |shell| {
        call(&mut shell.program, &format!("make {}", name(kind, object)));
    });
}

/// IPC_RMID, as a call.
fn remove(kind: Kind, id: u32) -> (i64, [remote::Arg; 3]) {
    let command = libc::IPC_RMID;
    match kind {
        Kind::Segment => (libc::SYS_shmctl, [id.into(), command.into(), 0.into()]),
        Kind::Semaphores => (libc::SYS_semctl, [id.into(), 0.into(), command.into()]),
        Kind::Queue => (libc::SYS_msgctl, [id.into(), command.into(), 0.into()]),
    }
}

/// The mode it is made with, and the flags of a new object.
fn creation(object: &IpcObject) -> u32 {
    (libc::IPC_CREAT | libc::IPC_EXCL) as u32 | object.mode
}

/// `struct ipc64_perm` at the head of what IPC_SET takes, of which owner and mode matter, `size` bytes in all.
fn permissions(object: &IpcObject, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (at, value) in [(4, object.uid), (8, object.gid), (20, object.mode)] {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let text = "       key      msqid perms      cbytes       qnum lspid lrpid   uid\n -559038737         98304   640           5          1  5102     0  1000\n";
        let lines = parse(text);
        let object = lines[0].object(Kind::Queue);
        assert_eq!(
            (object.id, object.key, object.mode, object.uid),
            (98304, -559_038_737, 0o640, 1000)
        );
        assert_eq!(lines[0].number("lspid"), 5102);
    }

    #[test]
    fn a_number_that_was_given_again_is_nobody_who_used_it() {
        let pid = std::process::id();
        let now = sys::clock(libc::CLOCK_REALTIME) / NS_PER_S;
        let line = |last: u64| {
            Line(HashMap::from([
                ("otime".into(), last as i64),
                ("ctime".into(), 1),
            ]))
        };
        assert!(line(now + 1).is_by(pid));
        assert!(!line(now - 86_400 * 365 * 20).is_by(pid));
    }

    #[test]
    fn what_is_in_the_way() {
        let object = IpcObject {
            id: 7,
            key: 0x1234,
            ..Default::default()
        };
        let present = |key: i32, users: &[u32], alive: &[u32]| Host {
            present: vec![Present {
                kind: Kind::Segment,
                object: IpcObject { key, ..object },
                size: 10,
                users: users.to_vec(),
                alive: alive.to_vec(),
                attached: 0,
            }],
            chosen: true,
            boot: "this".to_owned(),
        };
        let mut snapshot = Snapshot {
            host: Some(images::proto::Host {
                boot_id: "this".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let wanted = Wanted {
            kind: Kind::Segment,
            object: &object,
            size: 10,
            unused: false,
        };
        let refused = |host: &Host, snapshot: &Snapshot| host.check(snapshot, &wanted).is_some();
        assert!(!refused(&present(0x1234, &[99], &[]), &snapshot));
        assert!(refused(&present(0x1234, &[99], &[99]), &snapshot));
        assert!(refused(&present(0x99, &[99], &[]), &snapshot));
        snapshot.host = None;
        assert!(refused(&present(0x1234, &[99], &[]), &snapshot));
        snapshot.processes.push(Process {
            pid: 99,
            ..Default::default()
        });
        assert!(!refused(&present(0x1234, &[99], &[]), &snapshot));
    }
}
