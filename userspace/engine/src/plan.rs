//! The ordered list of steps that brings a job back: a pure function of the snapshot and the facts about this host.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use images::proto::mapping::Kind;
use images::proto::open_file::Kind as FileKind;
use images::proto::process::State;
use images::proto::{
    IpcObject, Mapping, Process, Regular, SharedMemory, Snapshot, SystemVQueue, Thread,
};
use images::{Checkpoint, PAGE_SIZE, PageSet};
use remote::Program;

use crate::files::inet::{self, rebuild::Connections};
use crate::files::unix::rebuild::{self, Sockets};
use crate::files::{
    self, Making, Numbers, Shell, datagram, directory, epoll, inotify, lock, object, pidfd, pty,
    regular, timerfd,
};
use crate::host::Host;
use crate::ipc::{messages, segments, semaphores};
use crate::{
    FilesPolicy, Refusal, RestoreError, RestoreOptions, cpu, identity, ipc, limits, maps,
    scheduling, signals, timers, tree, vdso,
};

/// One step of a plan.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// The tree of processes.
    Tree(tree::Step),
    /// System calls in one thread.
    Run {
        pid: u32,
        tid: u32,
        what: &'static str,
        program: Program,
    },
    /// A new thread.
    Thread { pid: u32, tid: u32 },
    /// All pages go to their places.
    Fill,
    /// A process ends as it had ended, and waits for its parent to notice.
    Zombie { pid: u32, wait_status: i32 },
    /// A descriptor of a process that has ended and been waited for.
    Dead { pid: u32, place: u32, flags: u32 },
    /// A file that has grown is cut back.
    CutBack { regular: Regular },
    /// An object that outlives processes has been made: from here on it is removed if the restore fails.
    Left { kind: ipc::Kind, id: u32 },
    /// Everything runs.
    LetGo,
}

/// What to do, in order. Made without touching anything.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) namespace: bool,
    /// With a /dev/pts of its own, as indices of its terminals are taken.
    pub(crate) terminals: bool,
    pub(crate) block: Block,
    /// Where each shared memory object can be found while the job is built: process and descriptor.
    pub(crate) objects: Vec<(u32, u32, u64, u64)>,
    pub(crate) host: Host,
    /// Descriptors from here on are ours.
    pub(crate) outer: u32,
    /// All of them.
    pub(crate) ours: std::ops::Range<u32>,
    /// Which pages have content, by space.
    pub(crate) content: BTreeMap<u64, Content>,
}

/// The addresses that are ours while a process is built; the job uses them in none of its processes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Block {
    pub(crate) base: u64,
    /// The stub and the leader's programs.
    pub(crate) leader: usize,
    /// Programs of each further thread.
    pub(crate) thread: usize,
    pub(crate) threads: usize,
    /// The vdso and what belongs to it waits here.
    pub(crate) staging: u64,
    pub(crate) vdso: u64,
    /// Free for mapping a shared memory object, or for a vdso that cannot go to its old place.
    pub(crate) spare: u64,
}

impl Block {
    /// Bytes of the mapping that holds stub and programs.
    pub(crate) fn length(&self) -> usize {
        self.leader + self.thread * self.threads
    }
}

const LEADER_ROOM: usize = 512 << 10;
const THREAD_ROOM: usize = 16 << 10;
const LOWEST: u64 = 1 << 32;
const HIGHEST: u64 = 0x7000_0000_0000;

impl Plan {
    /// Whether the job needs a pid namespace of its own, as pids are taken.
    pub fn namespace(&self) -> bool {
        self.namespace
    }

    /// The steps, a line each.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.namespace {
            lines.push("make a pid namespace with its own /proc, as pids or terminals of the job are taken".to_owned());
        }
        if self.terminals {
            lines.push(
                "mount a /dev/pts of its own there, as terminals of the job are taken".to_owned(),
            );
        }
        for step in &self.steps {
            step.lines(&mut lines);
        }
        lines
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines()
            .iter()
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Step {
    fn lines(&self, lines: &mut Vec<String>) {
        match self {
            Self::Tree(step) => lines.push(match step {
                tree::Step::Spawn { pid } => format!("make process {pid}"),
                tree::Step::Fork { parent, pid, .. } if *pid >= tree::HELPERS => {
                    format!("process {parent}: fork a helper")
                }
                tree::Step::Fork { parent, pid, .. } if *parent >= tree::HELPERS => {
                    format!("the helper: fork {pid}")
                }
                tree::Step::Fork { parent, pid, .. } => format!("process {parent}: fork {pid}"),
                tree::Step::NewSession { pid } => format!("process {pid}: lead a session"),
                tree::Step::JoinGroup { pid, group } => {
                    format!("process {pid}: join process group {group}")
                }
                tree::Step::Adopt { pid } => format!("process {pid}: adopt orphans"),
                tree::Step::End { pid, .. } if *pid >= tree::HELPERS => {
                    "the helper: end".to_owned()
                }
                tree::Step::End { pid, .. } => {
                    format!("process {pid}: end (it was only there for its id)")
                }
            }),
            Self::Run {
                pid,
                tid,
                what,
                program,
            } => {
                let who = if pid == tid {
                    format!("process {pid}")
                } else {
                    format!("thread {tid}")
                };
                lines.push(format!("{who}: {what}"));
                lines.extend(program.calls().iter().map(|call| format!("    {call}")));
            }
            Self::Thread { pid, tid } => lines.push(format!("process {pid}: start thread {tid}")),
            Self::Fill => lines.push("write all pages to their places".to_owned()),
            Self::Zombie { pid, wait_status } => lines.push(format!(
                "process {pid}: end again (wait status {wait_status:#x})"
            )),
            Self::Dead { pid, .. } => lines.push(format!(
                "process {pid}: take a descriptor of a helper that ends"
            )),
            Self::CutBack { regular } => {
                lines.push(format!(
                    "cut {} back to {} bytes, keeping the rest beside it",
                    regular.path, regular.size
                ));
            }
            Self::Left { .. } => {}
            Self::LetGo => lines.push("set all registers and let everything run".to_owned()),
        }
    }
}

/// What of a snapshot no host could restore.
pub(crate) fn impossible(snapshot: &Snapshot) -> Vec<Refusal> {
    tree::plan(&snapshot.processes).err().unwrap_or_default()
}

/// Plans the restore of a checkpoint on this host.
///
/// # Errors
/// [`RestoreError::Refused`] with every reason why this host cannot restore it; [`RestoreError::Image`] when the image is damaged.
pub fn plan(checkpoint: &Checkpoint, options: &RestoreOptions<'_>) -> Result<Plan, RestoreError> {
    let mut content = BTreeMap::new();
    let snapshot = checkpoint.snapshot();
    let host = Host::probe(snapshot);
    for process in &snapshot.processes {
        if let Some(memory) = &process.memory {
            content.insert(memory.space, Content(checkpoint.pages(memory.space)));
        }
    }
    let taken = |id: u32| std::path::Path::new(&format!("/proc/{id}")).exists();
    let plan = make(snapshot, &content, &host, options.files, &taken);
    let plan = plan.map_err(RestoreError::Refused)?;
    Ok(Plan { content, ..plan })
}

/// Which pages of a space have content.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content(pub(crate) PageSet);

impl Content {
    pub(crate) fn within(&self, mapping: &Mapping) -> bool {
        self.count(&(mapping.start..mapping.end)) > 0
    }

    /// How many lie in an address range.
    pub(crate) fn count(&self, range: &std::ops::Range<u64>) -> u64 {
        let below = |address: u64| match (address / PAGE_SIZE as u64).checked_sub(1) {
            Some(last) => self.0.rank(last),
            None => 0,
        };
        below(range.end) - below(range.start)
    }
}

fn alive(process: &&Process) -> bool {
    process.state() != State::Zombie
}

/// The plan, or every reason against it.
pub(crate) fn make(
    snapshot: &Snapshot,
    content: &BTreeMap<u64, Content>,
    host: &Host,
    files: FilesPolicy,
    taken: &dyn Fn(u32) -> bool,
) -> Result<Plan, Vec<Refusal>> {
    let mut refusals = check_host(snapshot, host);
    refusals.extend(check_shape(snapshot));
    let objects = snapshot.shared.iter();
    refusals.extend(objects.filter_map(|shared| object::check(shared, snapshot.root)));
    let files_ = snapshot.files.iter();
    refusals.extend(files_.filter_map(|file| rebuild::check(file, snapshot.root)));
    let files_ = snapshot.files.iter();
    refusals.extend(files_.filter_map(|file| inet::check(file, snapshot.root)));
    let files_ = snapshot.files.iter();
    refusals.extend(files_.filter_map(|file| datagram::check(file, snapshot.root)));
    refusals.extend(ipc::check(snapshot, &host.ipc));
    let cut = check_files(snapshot, files, &mut refusals);
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let tree = tree::plan(&snapshot.processes)?;
    let processes: Vec<&Process> = snapshot.processes.iter().filter(alive).collect();
    let block = find_block(snapshot, host).ok_or_else(|| {
        let why = "its processes use nearly all addresses, so that none are left to build it from";
        vec![refusal(
            snapshot.root,
            "its memory",
            why,
            "report this program",
        )]
    })?;
    let mut ours = 3 + 1 + snapshot.files.len() + snapshot.shared.len() + 1;
    if files::has_sockets(&snapshot.files) {
        ours += 2 * (snapshot.files.len() + 1);
    }
    let outer = free_descriptors(&processes, ours as u32);
    let terminals_taken =
        pty::indices(&snapshot.files).any(|index| host.terminals.contains(&index));
    // A pid namespace comes with a mount namespace, where /dev/pts can be the job's own.
    let namespace = terminals_taken || ids_taken(snapshot, &tree, host, taken);
    let terminals = if terminals_taken {
        Vec::new()
    } else {
        host.terminals.clone()
    };
    let making = Making {
        files: &snapshot.files,
        processes: &snapshot.processes,
        outer,
        base: outer + 3,
        objects: &snapshot.shared,
        terminals,
    };
    let mut steps: Vec<Step> = tree.iter().cloned().map(Step::Tree).collect();
    // Descriptor tables, as they are when everybody has been forked: only the outer standard descriptors.
    let mut numbers: BTreeMap<u32, Numbers> = processes
        .iter()
        .map(|p| (p.pid, Numbers::new(outer..outer + 3)))
        .collect();
    let mut stage =
        |steps: &mut Vec<Step>, what: &'static str, write: &dyn Fn(&mut Shell, &Process)| {
            for process in &processes {
                let table = numbers.remove(&process.pid).unwrap_or_default();
                let mut shell = Shell {
                    program: Program::new(),
                    numbers: table,
                };
                write(&mut shell, process);
                numbers.insert(process.pid, shell.numbers);
                if !shell.program.is_empty() {
                    steps.push(Step::Run {
                        pid: process.pid,
                        tid: process.pid,
                        what,
                        program: shell.program,
                    });
                }
            }
        };
    stage(
        &mut steps,
        "use files by its own rights",
        &|shell, process| {
            if let Some(wanted) = process.threads.first().and_then(|t| t.credentials.as_ref()) {
                identity::assume_files(&mut shell.program, wanted, &host.credentials);
            }
        },
    );
    let known = (&host.ipc, &host.credentials);
    let first = processes.first().map_or(0, |process| process.pid);
    let mut objects = Vec::new();
    for shared in &snapshot.shared {
        let maker = making.object_maker(shared.id);
        if maker != 0 {
            let place = making.object_place(shared.id);
            objects.push((maker, place, shared.space, shared.size));
        }
    }
    let made = |process: &Process| -> Vec<&SharedMemory> {
        let mine = |shared: &&SharedMemory| making.object_maker(shared.id) == process.pid;
        snapshot.shared.iter().filter(mine).collect()
    };
    stage(&mut steps, "make shared memory", &|shell, process| {
        for shared in made(process) {
            let place = making.object_place(shared.id);
            object::make(shell, shared, block.spare, place);
            segments::make(shell, process, known, shared, (block.spare, place));
        }
    });
    let lasting = ipc::made(snapshot, &host.ipc);
    let makes = |kind, object: Option<&IpcObject>| {
        object.is_some_and(|object| lasting.contains(&(kind, object.id)))
    };
    let sender = |queue: &SystemVQueue| {
        let mut all = processes.iter();
        all.find(|process| process.pid == queue.sender)
            .map_or(first, |process| process.pid)
    };
    stage(
        &mut steps,
        "make semaphores and queues",
        &|shell, process| {
            if process.pid == first {
                for set in snapshot
                    .semaphores
                    .iter()
                    .filter(|set| makes(ipc::Kind::Semaphores, set.object.as_ref()))
                {
                    semaphores::make(shell, process, known, set);
                }
                for queue in snapshot
                    .queues
                    .iter()
                    .filter(|queue| makes(ipc::Kind::Queue, queue.object.as_ref()))
                {
                    messages::make(shell, process, known, queue);
                }
            }
        },
    );
    steps.extend(lasting.iter().map(|&(kind, id)| Step::Left { kind, id }));
    stage(
        &mut steps,
        "fill semaphores and queues",
        &|shell, process| {
            for set in &snapshot.semaphores {
                semaphores::sign(shell, process, set);
            }
            for queue in snapshot
                .queues
                .iter()
                .filter(|queue| sender(queue) == process.pid)
            {
                messages::fill(shell, queue);
            }
        },
    );
    stage(&mut steps, "map memory", &|shell, process| {
        map_memory(shell, process, snapshot, content, host, &block, &making);
    });
    stage(&mut steps, "open files", &|shell, process| {
        making.make(shell, process.pid);
    });
    for process in &processes {
        for (place, flags) in pidfd::dead(&making, process.pid) {
            let pid = process.pid;
            steps.push(Step::Dead { pid, place, flags });
        }
    }
    let sockets = Sockets::new(&making, &host.credentials);
    stage(&mut steps, "make Unix sockets", &|shell, process| {
        sockets.create(shell, process);
    });
    stage(&mut steps, "connect Unix sockets", &|shell, process| {
        sockets.connect(shell, process);
    });
    stage(&mut steps, "accept connections", &|shell, process| {
        sockets.accept(shell, process);
    });
    stage(&mut steps, "take over Unix sockets", &|shell, process| {
        sockets.hand_over(shell, process);
    });
    stage(&mut steps, "fill Unix sockets", &|shell, process| {
        sockets.fill(shell, process, host.send_buffer);
    });
    stage(&mut steps, "finish Unix sockets", &|shell, process| {
        sockets.finish(shell, process);
    });
    let connections = Connections::new(&making);
    stage(&mut steps, "make TCP sockets", &|shell, process| {
        connections.create(shell, process);
    });
    for connection in connections.connections() {
        stage(&mut steps, "listen", &|shell, process| {
            connections.prepare(shell, process, connection);
        });
        stage(&mut steps, "connect", &|shell, process| {
            connections.connect(shell, process, connection);
        });
        stage(&mut steps, "accept", &|shell, process| {
            connections.accept(shell, process, connection);
        });
    }
    stage(&mut steps, "take over TCP sockets", &|shell, process| {
        connections.hand_over(shell, process);
    });
    stage(&mut steps, "fill TCP sockets", &|shell, process| {
        connections.fill(shell, process, host.send_buffer);
    });
    stage(&mut steps, "finish TCP sockets", &|shell, process| {
        connections.finish(shell, process);
    });
    stage(&mut steps, "take over terminals", &|shell, process| {
        making.make_terminals(shell, process);
    });
    stage(&mut steps, "put descriptors in place", &|shell, process| {
        making.place_all(shell, process, host);
    });
    stage(&mut steps, "watch descriptors", &|shell, process| {
        epoll::register(shell, &making, process);
    });
    steps.push(Step::Fill);
    stage(&mut steps, "finish shared memory", &|shell, process| {
        for shared in made(process) {
            object::finish(shell, shared, making.object_place(shared.id));
        }
    });
    stage(&mut steps, "take executables", &|shell, process| {
        if let Some(object) = executed_object(process, snapshot) {
            let flags = libc::O_RDONLY as u32;
            let fd = object::reopen(shell, &making, object, process.pid, flags);
            shell.rename(fd, making.place(0), true);
        }
    });
    stage(&mut steps, "finish memory", &|shell, process| {
        finish_memory(
            shell,
            process,
            snapshot,
            content,
            outer..outer + ours as u32,
            making.place(0),
        );
    });
    for process in &processes {
        for thread in process.threads.iter().skip(1) {
            steps.push(Step::Thread {
                pid: process.pid,
                tid: thread.tid,
            });
        }
    }
    for process in snapshot.processes.iter().filter(|p| !alive(p)) {
        steps.push(Step::Zombie {
            pid: process.pid,
            wait_status: process.wait_status,
        });
    }
    stage(
        &mut steps,
        "set the state of the process",
        &|shell, process| process_state(shell, process, host),
    );
    for process in &processes {
        for thread in &process.threads {
            let online = snapshot.host.as_ref().map_or(0, |h| h.cpus);
            let program = thread_state(process, thread, host, online);
            steps.push(Step::Run {
                pid: process.pid,
                tid: thread.tid,
                what: "set the state of the thread",
                program,
            });
        }
    }
    for regular in cut {
        steps.push(Step::CutBack { regular });
    }
    stage(
        &mut steps,
        "take locks and watch files",
        &|shell, process| {
            lock::take(shell, &making, process);
            inotify::watch(shell, &making, process);
        },
    );
    stage(
        &mut steps,
        "queue signals and start timers",
        &|shell, process| {
            timerfd::arm(shell, &making, process);
            let program = &mut shell.program;
            signals::drain(program);
            signals::queue(
                program,
                process.pid,
                0,
                &process.pending,
                &process.posix_timers,
            );
            let pending = || {
                process
                    .pending
                    .iter()
                    .chain(process.threads.iter().flat_map(|thread| &thread.pending))
            };
            let is_pending = |timer: &_| pending().any(|info| signals::is_from(info, timer));
            timers::arm(
                program,
                &process.interval_timers,
                &process.posix_timers,
                &is_pending,
            );
        },
    );
    steps.push(Step::LetGo);
    Ok(Plan {
        steps,
        namespace,
        terminals: terminals_taken,
        block,
        objects,
        host: host.clone(),
        outer,
        ours: outer..outer + ours as u32,
        content: BTreeMap::new(),
    })
}

fn refusal(pid: u32, what: &str, why: &str, advice: &str) -> Refusal {
    Refusal {
        pid,
        what: what.to_owned(),
        why: why.to_owned(),
        advice: advice.to_owned(),
    }
}

fn check_host(snapshot: &Snapshot, host: &Host) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let job = snapshot.host.clone().unwrap_or_default();
    if job.arch != host.record.arch {
        let why = format!(
            "it was taken on {}, this host is {}",
            job.arch, host.record.arch
        );
        refusals.push(refusal(
            snapshot.root,
            "its machine code",
            &why,
            "restore on a host of that architecture",
        ));
    }
    let missing = cpu::missing(&job, &host.record);
    if !missing.is_empty() {
        let why = format!("this CPU lacks {}", missing.join(", "));
        let advice = format!("restore on a host with a CPU like that of {}", job.hostname);
        refusals.push(refusal(
            snapshot.root,
            "the CPU features it was started with",
            &why,
            &advice,
        ));
    }
    for process in &snapshot.processes {
        for limit in &process.limits {
            let ours = host
                .limits
                .iter()
                .find(|ours| ours.resource == limit.resource);
            if ours.is_some_and(|ours| limit.hard > ours.hard) && !host.may_raise_limits() {
                let why = format!(
                    "its hard limit ({}) is above ours, and we may not raise it",
                    limit.hard
                );
                let what = limits::name(limit.resource);
                refusals.push(refusal(
                    process.pid,
                    what,
                    &why,
                    "raise the limit (ulimit -H) before restoring, or grant CAP_SYS_RESOURCE",
                ));
            }
        }
    }
    refusals
}

/// What no image of ours says. Addresses and descriptors are used as they are, so they are looked at first.
fn check_shape(snapshot: &Snapshot) -> Vec<Refusal> {
    let mut bad = Vec::new();
    let mut say = |pid: u32, what: &str| {
        bad.push(refusal(
            pid,
            what,
            "the image contradicts itself",
            "take another checkpoint (`ckptd list`)",
        ));
    };
    let mut pids = BTreeSet::new();
    for process in &snapshot.processes {
        let pid = process.pid;
        let ids = process.threads.iter().map(|t| t.tid);
        if pid == 0 || pid >= tree::HELPERS || process.threads.first().is_none_or(|t| t.tid != pid)
        {
            say(pid, "its threads");
        }
        if ids.filter(|id| !pids.insert(*id)).count() > 0 {
            say(pid, "its ids");
        }
        if process.ppid != 0 && !pids.contains(&process.ppid) {
            say(pid, "its parent");
        }
        if !alive(&process) {
            continue;
        }
        let Some(memory) = &process.memory else {
            say(pid, "its memory");
            continue;
        };
        let page = PAGE_SIZE as u64;
        let bounds = memory.mappings.iter().all(|m| {
            m.start < m.end
                && m.end <= 1 << 47
                && m.start.is_multiple_of(page)
                && m.end.is_multiple_of(page)
        });
        let apart = memory
            .mappings
            .windows(2)
            .all(|pair| pair[0].end <= pair[1].start);
        if !bounds || !apart || memory.layout.is_none() {
            say(pid, "its mappings");
        }
        let file = |id: u32| {
            snapshot
                .files
                .get((id as usize).wrapping_sub(1))
                .is_some_and(|f| f.id == id && f.kind.is_some())
        };
        let object = |id: u32| {
            let shared = snapshot.shared.get((id as usize).wrapping_sub(1));
            shared.is_some_and(|s| s.id == id && s.size < 1 << 47)
        };
        let objects = snapshot.files.iter().all(|file| match &file.kind {
            Some(FileKind::Object(file)) => object(file.object),
            _ => true,
        });
        let mapped = |m: &Mapping| match m.kind() {
            Kind::FilePrivate | Kind::FileShared => file(m.file),
            Kind::AnonymousShared => object(m.file),
            _ => true,
        };
        if !objects
            || !memory.mappings.iter().all(mapped)
            || !process
                .descriptors
                .iter()
                .all(|d| file(d.file) && d.fd < 1 << 24)
        {
            say(pid, "its files");
        }
        if process
            .descriptors
            .windows(2)
            .any(|pair| pair[0].fd >= pair[1].fd)
        {
            say(pid, "its descriptors");
        }
        if process
            .threads
            .iter()
            .any(|t| remote::sys::registers_from_bytes(&t.registers).is_none())
        {
            say(pid, "its registers");
        }
    }
    if !pids.contains(&snapshot.root) {
        say(snapshot.root, "its first process");
    }
    bad
}

/// Looks at all regular files; gives those to be cut back.
fn check_files(
    snapshot: &Snapshot,
    policy: FilesPolicy,
    refusals: &mut Vec<Refusal>,
) -> Vec<Regular> {
    use regular::Changed;
    let mut cut: Vec<Regular> = Vec::new();
    for file in &snapshot.files {
        let Some(FileKind::Regular(regular)) = &file.kind else {
            continue;
        };
        // Files of /proc and the like have no size of their own.
        if regular.path.starts_with("/proc/") || regular.path.starts_with("/sys/") {
            continue;
        }
        let path = regular.path.as_str();
        let written = file.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
        match regular::changed(regular) {
            None => {}
            Some(Changed::Missing(error)) => {
                refusals.push(refusal(
                    snapshot.root,
                    path,
                    &format!("it cannot be found: {error}"),
                    "put the file back in its place",
                ));
            }
            Some(Changed::Text) => {
                let why = "it is another executable or library than at the checkpoint (build id or size differ)";
                refusals.push(refusal(
                    snapshot.root,
                    path,
                    why,
                    "put back the version the job was running",
                ));
            }
            Some(Changed::Shorter(size))
                if policy == FilesPolicy::Fail || (written && policy != FilesPolicy::Keep) =>
            {
                let why = format!(
                    "it has {size} bytes, {} fewer than at the checkpoint",
                    regular.size - size
                );
                refusals.push(refusal(
                    snapshot.root,
                    path,
                    &why,
                    "put back the file as it was, or restore with --files keep",
                ));
            }
            Some(Changed::Longer(size)) if policy == FilesPolicy::Fail => {
                let why = format!(
                    "it has {size} bytes, {} more than at the checkpoint",
                    size - regular.size
                );
                refusals.push(refusal(
                    snapshot.root,
                    path,
                    &why,
                    "restore with --files truncate or keep",
                ));
            }
            Some(Changed::Longer(_))
                if policy == FilesPolicy::Truncate
                    && written
                    && !cut.iter().any(|other| other.path == regular.path) =>
            {
                cut.push(regular.clone());
            }
            Some(_) => {}
        }
    }
    cut
}

fn ids_taken(
    snapshot: &Snapshot,
    tree: &[tree::Step],
    host: &Host,
    taken: &dyn Fn(u32) -> bool,
) -> bool {
    let threads = snapshot
        .processes
        .iter()
        .flat_map(|p| p.threads.iter().map(|t| t.tid));
    let ghosts = tree.iter().filter_map(|step| match step {
        tree::Step::Spawn { pid } | tree::Step::Fork { pid, .. } if *pid < tree::HELPERS => {
            Some(*pid)
        }
        _ => None,
    });
    threads
        .chain(ghosts)
        .any(|id| id >= host.pid_max || taken(id))
}

/// Finds addresses that no process of the job uses.
fn find_block(snapshot: &Snapshot, host: &Host) -> Option<Block> {
    let mut used: Vec<(u64, u64)> = snapshot
        .processes
        .iter()
        .filter_map(|p| p.memory.as_ref())
        .flat_map(|m| m.mappings.iter().map(|m| (m.start, m.end)))
        .collect();
    used.sort_unstable();
    let threads = snapshot
        .processes
        .iter()
        .map(|p| p.threads.len())
        .max()
        .unwrap_or(1)
        - 1;
    let vdso: u64 = host.vdso_pieces.iter().map(|(length, _)| length).sum();
    let mut block = Block {
        leader: LEADER_ROOM,
        thread: THREAD_ROOM,
        threads,
        vdso,
        ..Default::default()
    };
    let largest = snapshot.shared.iter().map(|s| s.size).max().unwrap_or(0);
    // Shared memory may be mapped by huge pages.
    let spare = (largest.max(vdso) + (1 << 30)).next_multiple_of(1 << 21);
    let needed = block.length() as u64 + vdso + spare + (4 << 20);
    let mut at = LOWEST;
    for (start, end) in used.iter().copied().chain([(HIGHEST, u64::MAX)]) {
        if start > at && start - at > needed + (2 << 20) {
            block.base = (at + (1 << 20)).next_multiple_of(1 << 21);
            block.staging = block.base + block.length() as u64;
            block.spare = (block.staging + vdso).next_multiple_of(1 << 30);
            if block.spare + largest.max(vdso) < start {
                return Some(block);
            }
        }
        at = at.max(end.min(HIGHEST));
    }
    None
}

/// The lowest run of so many descriptors that no process of the job uses.
fn free_descriptors(processes: &[&Process], count: u32) -> u32 {
    let used: BTreeSet<u32> = processes
        .iter()
        .flat_map(|p| p.descriptors.iter().map(|d| d.fd))
        .chain(0..3)
        .collect();
    let mut free = 0;
    for fd in used {
        if fd - free >= count {
            break;
        }
        free = fd + 1;
    }
    free
}

const PR_SET_THP_DISABLE: u64 = 41;

fn map_memory(
    shell: &mut Shell,
    process: &Process,
    snapshot: &Snapshot,
    content: &BTreeMap<u64, Content>,
    host: &Host,
    block: &Block,
    making: &Making<'_>,
) {
    let Some(memory) = &process.memory else {
        return;
    };
    if process.thp_disabled {
        let args = [
            PR_SET_THP_DISABLE.into(),
            1.into(),
            0.into(),
            0.into(),
            0.into(),
        ];
        shell
            .program
            .must(libc::SYS_prctl, &args, "use no huge pages");
    }
    let recorded = snapshot.host.as_ref().map_or(&[][..], |host| &host.vdso);
    vdso::place(
        &mut shell.program,
        memory,
        recorded,
        host,
        block.staging,
        block.spare,
    );
    // One descriptor a file, whatever the number of its mappings.
    let mut open: BTreeMap<(bool, u32), u32> = BTreeMap::new();
    segments::map(shell, &memory.mappings, &snapshot.shared, block.spare);
    let segment = |id: u32| {
        making
            .objects
            .get(id as usize - 1)
            .is_some_and(|shared| shared.segment.is_some())
    };
    for mapping in &memory.mappings {
        let filled = content
            .get(&memory.space)
            .is_some_and(|content| content.within(mapping));
        let fd = match mapping.kind() {
            Kind::Vdso | Kind::Vvar => continue,
            Kind::Anonymous => None,
            Kind::FilePrivate | Kind::FileShared => {
                Some(*open.entry((true, mapping.file)).or_insert_with(|| {
                    let file = &snapshot.files[mapping.file as usize - 1];
                    let flags = file.flags & libc::O_ACCMODE as u32;
                    match &file.kind {
                        Some(FileKind::Object(object)) => {
                            object::reopen(shell, making, object.object, process.pid, flags)
                        }
                        Some(FileKind::Regular(regular)) => shell.open_path(&regular.path, flags),
                        _ => shell.open_path("", flags),
                    }
                }))
            }
            Kind::AnonymousShared if segment(mapping.file) => continue,
            Kind::AnonymousShared => {
                let maker = making.object_maker(mapping.file);
                let place = making.object_place(mapping.file);
                if maker == process.pid {
                    Some(place)
                } else {
                    Some(
                        *open
                            .entry((false, mapping.file))
                            .or_insert_with(|| shell.fetch(maker, place)),
                    )
                }
            }
        };
        maps::map(
            &mut shell.program,
            mapping,
            fd,
            filled && matches!(mapping.kind(), Kind::Anonymous | Kind::FilePrivate),
        );
    }
    for fd in open.into_values() {
        shell.close(fd);
    }
}

fn finish_memory(
    shell: &mut Shell,
    process: &Process,
    snapshot: &Snapshot,
    content: &BTreeMap<u64, Content>,
    ours: std::ops::Range<u32>,
    executed: u32,
) {
    let Some(memory) = &process.memory else {
        return;
    };
    for mapping in &memory.mappings {
        let filled = content
            .get(&memory.space)
            .is_some_and(|content| content.within(mapping));
        let private = matches!(mapping.kind(), Kind::Anonymous | Kind::FilePrivate);
        if !matches!(mapping.kind(), Kind::Vdso | Kind::Vvar) {
            maps::finish(&mut shell.program, mapping, filled && private);
        }
    }
    if let (Some(layout), Some(_)) = (&memory.layout, executed_object(process, snapshot)) {
        maps::set_layout(&mut shell.program, layout, executed);
    }
    let args = [ours.start.into(), (ours.end - 1).into(), 0.into()];
    shell.program.must(
        libc::SYS_close_range,
        &args,
        "close the descriptors used for building",
    );
    if let Some(layout) = &memory.layout {
        let exe = snapshot.files.get((layout.exe as usize).wrapping_sub(1));
        if let Some(FileKind::Regular(regular)) = exe.and_then(|exe| exe.kind.as_ref()) {
            shell.numbers = Numbers::new(process.descriptors.iter().map(|d| d.fd));
            let fd = shell.open_path(&regular.path, libc::O_RDONLY as u32);
            maps::set_layout(&mut shell.program, layout, fd);
            shell.close(fd);
        }
    }
    work_in(shell, &process.cwd, process.cwd_deleted, &process.root);
}

/// The object that a process executes.
fn executed_object(process: &Process, snapshot: &Snapshot) -> Option<u32> {
    let layout = process.memory.as_ref()?.layout.as_ref()?;
    let exe = snapshot.files.get((layout.exe as usize).wrapping_sub(1))?;
    match &exe.kind {
        Some(FileKind::Object(object)) => Some(object.object),
        _ => None,
    }
}

/// The working directory first: its path is as seen from our root.
fn work_in(shell: &mut Shell, cwd: &str, deleted: bool, root: &str) {
    let change = |shell: &mut Shell, cwd: &str| {
        let name = shell.program.string(cwd);
        let label = format!("change to {cwd}");
        shell.program.must(libc::SYS_chdir, &[name.into()], label);
    };
    if deleted {
        directory::make(shell, cwd, change);
    } else {
        change(shell, cwd);
    }
    let program = &mut shell.program;
    if root != "/" {
        let name = program.string(root);
        program.must(
            libc::SYS_chroot,
            &[name.into()],
            format!("make {root} the root"),
        );
    }
}

const PR_SET_CHILD_SUBREAPER: u64 = 36;
const PR_SET_PDEATHSIG: u64 = 1;
const PR_SET_DUMPABLE: u64 = 4;
const PR_SET_NAME: u64 = 15;
const PR_SET_TIMERSLACK: u64 = 29;

fn prctl(program: &mut Program, operation: u64, value: u64, label: &str) {
    let args = [operation.into(), value.into(), 0.into(), 0.into(), 0.into()];
    program.must(libc::SYS_prctl, &args, label);
}

fn process_state(shell: &mut Shell, process: &Process, host: &Host) {
    if process.oom_score_adj != host.oom_score_adj {
        let fd = shell.open_path("/proc/self/oom_score_adj", libc::O_WRONLY as u32);
        let text = process.oom_score_adj.to_string();
        let blob = shell.program.bytes(text.as_bytes());
        shell.program.must(
            libc::SYS_write,
            &[fd.into(), blob.into(), text.len().into()],
            "set oom_score_adj",
        );
        shell.close(fd);
    }
    let program = &mut shell.program;
    program.try_call(libc::SYS_umask, &[process.umask.into()], "set the umask");
    signals::set_actions(program, &process.actions);
    timers::create(program, &process.posix_timers, host.timer_ids);
    if process.child_subreaper {
        prctl(program, PR_SET_CHILD_SUBREAPER, 1, "adopt orphans");
    }
    limits::set(program, &process.limits, &host.limits);
}

fn thread_state(process: &Process, thread: &Thread, host: &Host, online: u32) -> Program {
    let mut program = Program::new();
    let label = format!("be called {}", String::from_utf8_lossy(&thread.name));
    let name = program.bytes([&thread.name[..], &[0]].concat());
    program.must(libc::SYS_prctl, &[PR_SET_NAME.into(), name.into()], label);
    program.try_call(
        libc::SYS_set_tid_address,
        &[thread.clear_child_tid.into()],
        "set clear_child_tid",
    );
    if let Some(place) = &thread.place {
        program.must(
            libc::SYS_unshare,
            &[libc::CLONE_FS.into()],
            "have a working directory of its own",
        );
        let numbers = Numbers::default();
        let mut shell = Shell { program, numbers };
        work_in(&mut shell, &place.cwd, place.cwd_deleted, &place.root);
        program = shell.program;
        program.try_call(libc::SYS_umask, &[place.umask.into()], "set the umask");
    }
    if thread.robust_list != 0 {
        let args = [thread.robust_list.into(), thread.robust_list_len.into()];
        program.must(
            libc::SYS_set_robust_list,
            &args,
            "register the robust futex list",
        );
    }
    cpu::set_rseq(&mut program, thread);
    signals::set_altstack(&mut program, thread);
    if let Some(wanted) = &thread.scheduling {
        scheduling::set(&mut program, wanted, &host.scheduling, online);
    }
    if thread.timer_slack != 0 {
        prctl(
            &mut program,
            PR_SET_TIMERSLACK,
            thread.timer_slack,
            "set the timer slack",
        );
    }
    program.try_call(
        libc::SYS_personality,
        &[thread.personality.into()],
        "set the personality",
    );
    signals::queue(
        &mut program,
        process.pid,
        thread.tid,
        &thread.pending,
        &process.posix_timers,
    );
    if let Some(wanted) = &thread.credentials {
        // What `assume_files` changed counts as ours for the comparison; it only ever takes away.
        identity::assume(&mut program, wanted, &host.credentials);
    }
    // Changing ids resets these two.
    if thread.tid == process.pid && process.dumpable <= 1 {
        prctl(
            &mut program,
            PR_SET_DUMPABLE,
            u64::from(process.dumpable),
            "set dumpable",
        );
    }
    if thread.parent_death_signal != 0 {
        prctl(
            &mut program,
            PR_SET_PDEATHSIG,
            u64::from(thread.parent_death_signal),
            "set the parent-death signal",
        );
    }
    program
}
