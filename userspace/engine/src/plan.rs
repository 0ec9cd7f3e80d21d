//! The ordered list of steps that brings a job back: a pure function of the snapshot and the facts about this host.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;

use images::Checkpoint;
use images::proto::{Process, SharedMemory, Snapshot};

use crate::files::inet::rebuild::Connections;
use crate::files::unix::rebuild::Sockets;
use crate::files::{self, Making, epoll, inotify, lock, object, pidfd, pty, timerfd};
use crate::host::Host;
use crate::ipc::segments;
use crate::{
    FilesPolicy, Refusal, RestoreError, RestoreOptions, TcpPolicy, cgroup, identity, ipc,
    namespaces, tree,
};

mod block;
mod check;
mod memory;
pub(crate) mod rights;
mod stages;
mod state;
mod step;

pub(crate) use block::Block;
use block::{find_block, free_descriptors};
use check::{alive, check, check_ended, refusal};
pub(crate) use memory::Content;
use memory::{executed_object, finish_memory, map_memory};
pub(crate) use stages::Stages;
use state::{
    process_state, signals_and_timers, suspended_filters, thread_states, threads_and_zombies,
};
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
    let mut refusals = tree::plan(&snapshot.processes).err().unwrap_or_default();
    refusals.extend(namespaces::impossible(snapshot));
    refusals.extend(check_ended(snapshot));
    refusals
}

/// Plans the restore of a checkpoint on this host.
///
/// # Errors
/// [`RestoreError::Refused`] with every reason why this host cannot restore it; [`RestoreError::Image`] when the image is damaged.
pub fn plan(checkpoint: &Checkpoint, options: &RestoreOptions<'_>) -> Result<Plan, RestoreError> {
    let mut content = BTreeMap::new();
    let snapshot = checkpoint.snapshot();
    let host = Host::probe(snapshot);
    if let Some(lost) = namespaces::check(snapshot, &host.credentials) {
        return Err(RestoreError::Refused(vec![lost]));
    }
    let host = host.within(namespaces::wanted(snapshot, options.apart));
    for process in &snapshot.processes {
        if let Some(memory) = &process.memory {
            content.insert(memory.space, Content::new(&checkpoint.pages(memory.space)));
        }
    }
    let taken = |id: u32| std::path::Path::new(&format!("/proc/{id}")).exists();
    let policies = (options.files, options.tcp);
    let plan = make(snapshot, &content, &host, policies, &taken);
    let plan = plan.map_err(RestoreError::Refused)?;
    Ok(Plan { content, ..plan })
}

/// The plan, or every reason against it.
pub(crate) fn make(
    snapshot: &Snapshot,
    content: &BTreeMap<u64, Content>,
    host: &Host,
    policies: (FilesPolicy, TcpPolicy),
    taken: &dyn Fn(u32) -> bool,
) -> Result<Plan, Vec<Refusal>> {
    let cut = check(snapshot, host, policies)?;
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
    let mut count = 3 + 1 + snapshot.files.len() + snapshot.shared.len() + 1;
    if files::has_sockets(&snapshot.files) {
        count += 2 * (snapshot.files.len() + 1);
    }
    let outer = free_descriptors(&processes, count as u32);
    let ours = outer..outer + count as u32;
    let terminals_taken =
        pty::indices(&snapshot.files).any(|index| host.terminals.contains(&index));
    // A pid namespace comes with a mount namespace, where /dev/pts can be the job's own.
    let namespace =
        host.own.is_some() || terminals_taken || ids_taken(snapshot, &tree, host, taken);
    let terminals = if terminals_taken {
        Vec::new()
    } else {
        host.terminals.clone()
    };
    let making = Making {
        makers: OnceCell::new(),
        files: &snapshot.files,
        processes: &snapshot.processes,
        outer,
        base: outer + 3,
        objects: &snapshot.shared,
        terminals,
    };
    let tree = tree.into_iter().map(Step::Tree).collect();
    let mut stages = Stages::new(processes, outer, tree);
    stages.extend(cgroup::steps(snapshot));
    stages.stage("use files by its own rights", |shell, process| {
        if let Some(wanted) = process.threads.first().and_then(|t| t.credentials.as_ref()) {
            identity::assume_files(&mut shell.program, wanted, &host.credentials);
        }
    });
    let made = |process: &Process| -> Vec<&SharedMemory> {
        let mine = |shared: &&SharedMemory| making.object_maker(shared.id) == process.pid;
        snapshot.shared.iter().filter(mine).collect()
    };
    let known = (&host.ipc, &host.credentials);
    stages.extend(object::kept_beside(snapshot));
    stages.stage("make shared memory", |shell, process| {
        for shared in made(process) {
            let place = making.object_place(shared.id);
            object::make(shell, shared, block.spare, place);
            segments::make(shell, process, known, shared, (block.spare, place));
        }
    });
    ipc::rebuild(&mut stages, snapshot, known);
    stages.stage("map memory", |shell, process| {
        map_memory(shell, process, snapshot, content, host, &block, &making);
    });
    stages.stage("open files", |shell, process| {
        making.make(shell, process.pid);
    });
    stages.extend(snapshot.processes.iter().filter(alive).flat_map(|process| {
        let pid = process.pid;
        let dead = pidfd::dead(&making, pid).into_iter();
        dead.map(move |(place, flags)| Step::Dead { pid, place, flags })
    }));
    Sockets::new(&making, &host.credentials).rebuild(&mut stages, host);
    let connections = Connections::new(&making, policies.1, host);
    connections.rebuild(&mut stages, host);
    stages.stage("take over terminals", |shell, process| {
        making.make_terminals(shell, process);
    });
    stages.stage("put descriptors in place", |shell, process| {
        making.place_all(shell, process, host);
        making.give(shell, process, &host.credentials);
    });
    stages.stage("watch descriptors", |shell, process| {
        epoll::register(shell, &making, process);
    });
    stages.extend([Step::Fill]);
    stages.stage("finish shared memory", |shell, process| {
        for shared in made(process) {
            object::finish(shell, shared, making.object_place(shared.id));
        }
    });
    stages.stage("take executables", |shell, process| {
        if let Some(object) = executed_object(process, snapshot) {
            let flags = libc::O_RDONLY as u32;
            let fd = object::reopen(shell, &making, object, process.pid, flags);
            shell.rename(fd, making.place(0), true);
        }
    });
    stages.stage("finish memory", |shell, process| {
        let executed = making.place(0);
        finish_memory(shell, process, snapshot, content, ours.clone(), executed);
    });
    stages.extend(threads_and_zombies(snapshot));
    stages.stage("set the state of the process", |shell, process| {
        process_state(shell, process, snapshot, host);
    });
    stages.extend(suspended_filters(snapshot));
    stages.extend(thread_states(snapshot, host));
    stages.extend(cut.into_iter().map(|regular| Step::CutBack { regular }));
    stages.stage("take locks and watch files", |shell, process| {
        lock::take(shell, &making, process);
        inotify::watch(shell, &making, process);
        making.tell(shell, process);
    });
    stages.stage("queue signals and start timers", |shell, process| {
        timerfd::arm(shell, &making, process);
        signals_and_timers(&mut shell.program, process);
    });
    connections.go_on(&mut stages);
    stages.extend([Step::LetGo]);
    let find = |shared: &SharedMemory| {
        let maker = making.object_maker(shared.id);
        let place = making.object_place(shared.id);
        (maker != 0).then_some((maker, place, shared.space, shared.size))
    };
    Ok(Plan {
        steps: stages.finish(),
        namespace,
        terminals: terminals_taken,
        block,
        objects: snapshot.shared.iter().filter_map(find).collect(),
        host: host.clone(),
        outer,
        ours,
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

#[cfg(test)]
mod tests;
