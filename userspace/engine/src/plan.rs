//! The ordered list of steps that brings a job back: a pure function of the snapshot and the facts about this host.

use std::collections::BTreeMap;
use std::fmt;

use images::Checkpoint;
use images::proto::{IpcObject, Process, SharedMemory, Snapshot, SystemVQueue};
use remote::Program;

use crate::files::inet::{self, rebuild::Connections};
use crate::files::unix::rebuild::{self, Sockets};
use crate::files::{
    self, Making, Numbers, Shell, datagram, epoll, inotify, lock, object, pidfd, pty, timerfd,
};
use crate::host::Host;
use crate::ipc::{messages, segments, semaphores};
use crate::{
    FilesPolicy, Refusal, RestoreError, RestoreOptions, identity, ipc, signals, timers, tree,
};

mod block;
mod check;
mod memory;
mod state;
mod step;

pub(crate) use block::Block;
use block::{find_block, free_descriptors};
use check::{alive, check_files, check_host, check_shape, refusal};
pub(crate) use memory::Content;
use memory::{executed_object, finish_memory, map_memory};
use state::{process_state, thread_state};
pub(crate) use step::Step;

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
