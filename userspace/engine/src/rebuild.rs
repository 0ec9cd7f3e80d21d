//! Carries a plan out.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use images::Checkpoint;
use images::proto::Snapshot;
use images::proto::open_file::Kind as FileKind;
use memory::uffd::Userfault;
use remote::stub::{self, Slot};
use remote::{Outcome, Program, RunError, Running, Stopped, Waited, sys};

use crate::files::{inet, object, regular};
use crate::plan::{Plan, Step};
use crate::{Rebuilt, RestoreError, RestoreOptions, Tracking, cgroup, clock};

mod birth;
mod fill;
mod namespace;
mod processes;
mod release;

/// Brings the job back. To be called from the main thread of the process that is to be its parent, which must adopt orphans
/// (PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// Any; nothing of the job is left then.
pub fn rebuild(
    checkpoint: &Checkpoint,
    plan: &Plan,
    options: &RestoreOptions<'_>,
) -> Result<Rebuilt, RestoreError> {
    let mut builder = Builder {
        plan,
        snapshot: checkpoint.snapshot(),
        tasks: BTreeMap::new(),
        init: None,
        tracking: None,
        lazy: BTreeMap::new(),
        left: Vec::new(),
    };
    match builder.build(checkpoint, options) {
        Ok(rebuilt) => Ok(rebuilt),
        Err(error) => {
            builder.abandon();
            Err(error)
        }
    }
}

/// One task under construction.
struct Task {
    task: Option<Stopped>,
    slot: Slot,
    /// Its process, in the job's numbers.
    pid: u32,
    /// Its id as we see it.
    outer: i32,
    /// What entering the wait it was caught in again gave.
    entered: Option<u64>,
}

struct Builder<'a> {
    plan: &'a Plan,
    snapshot: &'a Snapshot,
    /// By id in the job's namespace.
    tasks: BTreeMap<u32, Task>,
    /// The init of the job's own pid namespace.
    init: Option<u32>,
    /// What is known of its memory since it was filled.
    tracking: Option<Tracking>,
    /// Userfaultfds of processes (pids as we see them) whose memory comes later, until they are watched for writes too.
    lazy: BTreeMap<u32, Userfault>,
    /// System V objects, which outlive processes.
    left: Vec<(remote::ipc::Kind, u32)>,
}

/// Its number among the tasks.
const INIT: u32 = u32::MAX;
/// The lowest address user code may map by default (vm.mmap_min_addr).
const BOTTOM: u64 = 0x1_0000;
/// End of user addresses with four-level page tables.
const TOP: u64 = 0x7fff_ffff_f000;

fn failed(doing: impl Into<String>) -> impl FnOnce(io::Error) -> RestoreError {
    let doing = doing.into();
    move |source| RestoreError::System { doing, source }
}

fn broke(who: &str, error: RunError) -> RestoreError {
    match error {
        RunError::Call { label, source, .. } => RestoreError::System {
            doing: format!("{who}: {label}"),
            source,
        },
        RunError::System { doing, source, .. } => RestoreError::System {
            doing: format!("{who}: {doing}"),
            source,
        },
        RunError::Gone(_) => RestoreError::System {
            doing: who.to_owned(),
            source: io::Error::other("it ended while it was being built"),
        },
        other => RestoreError::System {
            doing: format!("{who}: {other}"),
            source: io::Error::other("not as planned"),
        },
    }
}

impl Builder<'_> {
    fn build(
        &mut self,
        checkpoint: &Checkpoint,
        options: &RestoreOptions<'_>,
    ) -> Result<Rebuilt, RestoreError> {
        raise_open_files();
        options.progress.phase("processes");
        let network = self.plan.host.own.as_ref().is_some_and(|own| own.network);
        if !network {
            inet::rebuild::clear(self.snapshot);
        }
        if let Some(offsets) = self.plan.host.clock {
            clock::enter(offsets).map_err(failed("making a time namespace"))?;
        }
        if self.plan.namespace {
            self.make_init()?;
        }
        for step in &self.plan.steps {
            match step {
                Step::Tree(step) => self.tree(step)?,
                Step::Run {
                    tid, what, program, ..
                } => self.run(*tid, what, program)?,
                Step::Thread { pid, tid } => self.thread(*pid, *tid)?,
                Step::Suspend { pid } => self.suspend_filters(*pid)?,
                Step::Fill => {
                    options.progress.phase("pages");
                    if let Some(serve) = options.lazy.filter(|_| self.plan.host.in_users_of_ours())
                    {
                        self.leave_for_later(checkpoint, serve, options.watch)?;
                    }
                    self.fill(checkpoint, options)?;
                    if options.watch {
                        self.watch(checkpoint)?;
                    }
                    options.progress.phase("state");
                }
                Step::Zombie { pid, wait_status } => self.zombie(*pid, *wait_status)?,
                &Step::Dead { pid, place, flags } => self.dead(pid, place, flags)?,
                Step::CutBack { regular } => {
                    regular::cut_back(regular).map_err(failed(format!(
                        "cutting {} back to its size at the checkpoint",
                        regular.path
                    )))?;
                }
                &Step::Cgroups { pid } => self.enter_cgroups(pid)?,
                Step::KeepBeside { shared } => object::keep_beside(shared).map_err(failed(
                    format!("keeping what {} holds now beside it", shared.name),
                ))?,
                // In a namespace of its own they go with it.
                Step::Left { kind, id }
                    if self.plan.host.own.as_ref().is_none_or(|own| !own.ipc) =>
                {
                    self.left.push((*kind, *id));
                }
                Step::Left { .. } => {}
                &Step::GoOn { pid, fd, file } => self.go_on(pid, fd, file)?,
                Step::LetGo => {}
            }
        }
        let init = self.init_outer();
        let root = self
            .tasks
            .get(&self.snapshot.root)
            .map_or(0, |task| task.outer as u32);
        options.progress.phase("release");
        self.let_go(options)?;
        let tracking = self.tracking.take();
        Ok(Rebuilt {
            root,
            init,
            tracking,
        })
    }

    fn enter_cgroups(&self, pid: u32) -> Result<(), RestoreError> {
        let mut processes = self.snapshot.processes.iter();
        let process = processes.find(|process| process.pid == pid);
        let outer = self.tasks.get(&pid).map_or(0, |task| task.outer as u32);
        let entered = process.map_or(Ok(()), |process| cgroup::enter(process, outer));
        entered.map_err(failed(format!(
            "process {pid}: entering its control groups"
        )))
    }

    /// Lets a TCP connection to the outside go on.
    fn go_on(&self, pid: u32, fd: u32, file: u32) -> Result<(), RestoreError> {
        let socket = self.snapshot.files.get(file as usize - 1);
        let Some(FileKind::Tcp(socket)) = socket.and_then(|file| file.kind.as_ref()) else {
            return Ok(());
        };
        let connection = self.descriptor(pid, fd)?;
        inet::outside::go_on(&connection, socket, self.plan.host.send_buffer).map_err(failed(
            format!("letting the connection of descriptor {fd} of process {pid} go on"),
        ))
    }

    fn init_outer(&self) -> Option<u32> {
        self.init
            .and_then(|init| self.tasks.get(&init))
            .map(|task| task.outer as u32)
    }

    fn run(&mut self, tid: u32, what: &str, program: &Program) -> Result<(), RestoreError> {
        self.ask(tid, what, program).map(drop)
    }

    /// As [`Self::run`], and gives what the calls gave.
    fn ask(&mut self, tid: u32, what: &str, program: &Program) -> Result<Outcome, RestoreError> {
        let (task, slot) = self.take(tid)?;
        let (task, outcome) = stub::run(slot, program, task, &mut |_| {})
            .map_err(|error| broke(&format!("{}: {what}", self.who(tid)), error))?;
        self.put(tid, task);
        Ok(outcome)
    }

    /// Runs a program whose only call makes a task; gives its id as we see it, and as the job does.
    fn run_making(
        &mut self,
        tid: u32,
        what: &str,
        program: &Program,
    ) -> Result<(i32, u64), RestoreError> {
        let (task, slot) = self.take(tid)?;
        let mut made = 0;
        let result = stub::run(slot, program, task, &mut |new| made = new as i32);
        if made != 0 && result.is_err() {
            let _ = sys::kill(made, libc::SIGKILL);
        }
        let (task, outcome) =
            result.map_err(|error| broke(&format!("{}: {what}", self.who(tid)), error))?;
        self.put(tid, task);
        Ok((made, outcome.result(0).unwrap_or(0)))
    }

    fn who(&self, tid: u32) -> String {
        match self.tasks.get(&tid) {
            _ if tid == INIT => "the init of the job's namespace".to_owned(),
            Some(task) if task.pid != tid => format!("thread {tid} of process {}", task.pid),
            _ => format!("process {tid}"),
        }
    }

    fn take(&mut self, tid: u32) -> Result<(Stopped, Slot), RestoreError> {
        let task = self.tasks.get_mut(&tid).ok_or_else(|| missing(tid))?;
        Ok((task.task.take().ok_or_else(|| missing(tid))?, task.slot))
    }

    fn put(&mut self, tid: u32, task: Stopped) {
        if let Some(entry) = self.tasks.get_mut(&tid) {
            entry.task = Some(task);
        }
    }

    /// Our duplicate of a descriptor of a process under construction.
    fn descriptor(&self, pid: u32, fd: u32) -> Result<OwnedFd, RestoreError> {
        let task = self.tasks.get(&pid).ok_or_else(|| missing(pid))?;
        let doing = || failed(format!("taking descriptor {fd} of process {pid}"));
        let pidfd = sys::pidfd_open(task.outer).map_err(doing())?;
        sys::pidfd_getfd(&pidfd, fd).map_err(doing())
    }

    /// Ends whatever there is of a job that did not come about.
    fn abandon(&mut self) {
        for task in self.tasks.values() {
            let _ = sys::kill(task.outer, libc::SIGKILL);
        }
        // A process has ended when its threads have, and an init when its namespace has.
        let mut order: Vec<(u32, &Task)> =
            self.tasks.iter().map(|(&id, task)| (id, task)).collect();
        order.sort_by_key(|(id, task)| (*id == INIT, *id == task.pid));
        for (_, task) in order {
            let mut running = Running::attached(task.outer);
            while let Ok(Waited::Stopped(stopped)) = running.wait() {
                match stopped.resume(0) {
                    Ok(next) => running = next,
                    Err(_) => break,
                }
            }
        }
        for task in self.tasks.values() {
            let pid = nix::unistd::Pid::from_raw(task.outer);
            let _ = nix::sys::wait::waitpid(
                pid,
                Some(nix::sys::wait::WaitPidFlag::__WALL | nix::sys::wait::WaitPidFlag::WNOHANG),
            );
        }
        self.tasks.clear();
        for (kind, id) in self.left.drain(..) {
            let _ = remote::ipc::remove(kind, id);
        }
    }
}

fn missing(tid: u32) -> RestoreError {
    failed(format!("task {tid}"))(io::Error::other("it is not there"))
}

fn expect_stop(running: Running, tid: u32) -> Result<Stopped, RestoreError> {
    match running
        .wait()
        .map_err(failed(format!("waiting for task {tid}")))?
    {
        Waited::Stopped(task) => Ok(task),
        Waited::Gone => Err(missing(tid)),
    }
}

/// Descriptors above the job's own are used while it is built.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
