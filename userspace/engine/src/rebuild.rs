//! Carries a plan out.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use images::Checkpoint;
use images::proto::mapping::Kind;
use images::proto::process::State;
use images::proto::{Process, Snapshot, Thread};
use memory::SoftDirty;
use memory::serve::{Label, Vault};
use memory::track::WriteProtect;
use remote::seed::{self, Birth};
use remote::stub::{self, Slot};
use remote::{Arg, Expect, Outcome, Program, RunError, Running, Stop, Stopped, Waited, live, sys};

use crate::files::{outer, regular};
use crate::pages::{self, Area, Place, Target};
use crate::plan::{Plan, Step};
use crate::{
    LazyJob, Rebuilt, RestoreError, RestoreOptions, Serve, Tracking, areas, lazy, track, tree,
    vdso, waits,
};

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
        crate::files::inet::rebuild::clear(self.snapshot);
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
                Step::Fill => {
                    options.progress.phase("pages");
                    if let Some(serve) = options.lazy {
                        self.leave_for_later(serve)?;
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
                Step::Left { kind, id } => self.left.push((*kind, *id)),
                Step::LetGo => {}
            }
        }
        let init = self.init_outer();
        let root = self
            .tasks
            .get(&self.snapshot.root)
            .map_or(0, |task| task.outer as u32);
        self.let_go(options)?;
        let tracking = self.tracking.take();
        Ok(Rebuilt {
            root,
            init,
            tracking,
        })
    }

    fn init_outer(&self) -> Option<u32> {
        self.init
            .and_then(|init| self.tasks.get(&init))
            .map(|task| task.outer as u32)
    }

    /// A seed with the stub, the vdso out of the way, and nothing else mapped.
    fn seed(&mut self, number: u32, birth: &Birth, ids: (i32, i32)) -> Result<(), RestoreError> {
        let block = &self.plan.block;
        let who = if number == INIT {
            "the init of the job's namespace".to_owned()
        } else {
            format!("process {number}")
        };
        let task = seed::spawn(birth).map_err(failed(format!("making {who}")))?;
        let outer = task.tid();
        let (task, mut slot) = seed::equip(task, block.base, block.length(), ids)
            .map_err(|error| broke(&who, error))?;
        slot.length = block.leader - 4096;
        let path = format!("/proc/{outer}/maps");
        let text = std::fs::read_to_string(&path).map_err(failed(format!("reading {path}")))?;
        let areas = areas::parse(&text);
        let first = areas
            .iter()
            .find(|area| area.path == "[vdso]" || area.path.starts_with("[vvar"));
        let mut program = Program::new();
        if let Some(first) = first {
            vdso::move_pieces(
                &mut program,
                &self.plan.host.vdso_pieces,
                first.start,
                block.staging,
            );
        }
        let (low, high) = (block.base, block.staging + block.vdso);
        program.must(
            libc::SYS_munmap,
            &[BOTTOM.into(), (low - BOTTOM).into()],
            "unmap everything below",
        );
        program.must(
            libc::SYS_munmap,
            &[high.into(), (TOP - high).into()],
            "unmap everything above",
        );
        if birth.keep_stdio {
            for fd in 0..3u32 {
                let to = self.plan.outer + fd;
                program.call(
                    libc::SYS_dup3,
                    &[fd.into(), to.into(), 0.into()],
                    Expect::Exactly(u64::from(to)),
                    "keep a standard descriptor",
                );
                program.must(libc::SYS_close, &[fd.into()], "close it");
            }
        }
        self.tasks.insert(
            number,
            Task {
                task: Some(task),
                slot,
                pid: number,
                outer,
                entered: None,
            },
        );
        self.run(number, "an empty address space", &program)
    }

    /// The first process of a new pid namespace, with a /proc of its own.
    fn make_init(&mut self) -> Result<(), RestoreError> {
        self.init = Some(INIT);
        self.seed(
            INIT,
            &Birth {
                ids: Vec::new(),
                namespace: true,
                keep_stdio: true,
            },
            (1, 1),
        )?;
        let mut program = Program::new();
        let (none, slash, proc, target) = (
            program.string("none"),
            program.string("/"),
            program.string("proc"),
            program.string("/proc"),
        );
        let private = libc::MS_REC | libc::MS_PRIVATE;
        program.must(
            libc::SYS_mount,
            &[
                none.into(),
                slash.into(),
                0.into(),
                private.into(),
                0.into(),
            ],
            "keep mounts to ourselves",
        );
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        program.must(
            libc::SYS_mount,
            &[
                proc.into(),
                target.into(),
                proc.into(),
                flags.into(),
                0.into(),
            ],
            "mount its own /proc",
        );
        if self.plan.terminals {
            let (devpts, pts) = (program.string("devpts"), program.string("/dev/pts"));
            let (ptmx, multiplexer) =
                (program.string("/dev/pts/ptmx"), program.string("/dev/ptmx"));
            let options = program.string("newinstance,ptmxmode=0666,mode=620,gid=5");
            let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
            let args = [
                devpts.into(),
                pts.into(),
                devpts.into(),
                flags.into(),
                options.into(),
            ];
            program.must(libc::SYS_mount, &args, "mount its own /dev/pts");
            let args = [
                ptmx.into(),
                multiplexer.into(),
                0.into(),
                libc::MS_BIND.into(),
                0.into(),
            ];
            program.must(libc::SYS_mount, &args, "make /dev/ptmx lead there");
        }
        self.run(INIT, "a namespace", &program)
    }

    fn tree(&mut self, step: &tree::Step) -> Result<(), RestoreError> {
        let simple = |nr: i64, args: &[Arg], label: &str| {
            let mut program = Program::new();
            program.must(nr, args, label);
            program
        };
        match *step {
            tree::Step::Spawn { pid } if self.plan.namespace => {
                self.fork(INIT, pid, libc::SIGCHLD as u32)
            }
            tree::Step::Spawn { pid } => {
                let birth = Birth {
                    ids: vec![pid as i32],
                    namespace: false,
                    keep_stdio: true,
                };
                self.seed(pid, &birth, (pid as i32, pid as i32))
            }
            tree::Step::Fork {
                parent,
                pid,
                exit_signal,
            } => self.fork(parent, pid, exit_signal),
            tree::Step::NewSession { pid } => self.run(
                pid,
                "lead a session",
                &simple(libc::SYS_setsid, &[], "setsid"),
            ),
            tree::Step::JoinGroup { pid, group } => {
                let program = simple(
                    libc::SYS_setpgid,
                    &[0.into(), group.into()],
                    &format!("join process group {group}"),
                );
                self.run(pid, "process group", &program)
            }
            tree::Step::Adopt { pid } => {
                let program = simple(libc::SYS_prctl, &[36.into(), 1.into()], "adopt orphans");
                self.run(pid, "adopt", &program)
            }
            tree::Step::End { pid, reaped_by } => {
                let outer = self.tasks.get(&pid).map_or(0, |task| task.outer);
                self.exit(pid, 0)?;
                if reaped_by == 0 {
                    // Ours, or the new init's.
                    let _ = nix::sys::wait::waitpid(
                        nix::unistd::Pid::from_raw(outer),
                        Some(
                            nix::sys::wait::WaitPidFlag::__WALL
                                | nix::sys::wait::WaitPidFlag::WNOHANG,
                        ),
                    );
                    return Ok(());
                }
                let mut program = Program::new();
                let all = u64::MAX;
                let options = libc::__WALL;
                let args = [
                    if pid >= tree::HELPERS {
                        all
                    } else {
                        u64::from(pid)
                    }
                    .into(),
                    0.into(),
                    options.into(),
                    0.into(),
                ];
                program.must(libc::SYS_wait4, &args, "wait for it");
                self.run(reaped_by, "helper", &program)
            }
        }
    }

    /// Forks in the process of `parent`; the child gets the id we choose.
    fn fork(&mut self, parent: u32, pid: u32, exit_signal: u32) -> Result<(), RestoreError> {
        let any = pid >= tree::HELPERS;
        let mut program = Program::new();
        let shares = self
            .snapshot
            .processes
            .iter()
            .any(|process| process.pid == pid && process.shares_fs);
        let flags = if shares { libc::CLONE_FS as u64 } else { 0 };
        clone3(
            &mut program,
            flags,
            u64::from(exit_signal),
            (!any).then_some(pid),
            &format!("fork {pid}"),
        );
        let (outer, result) = self.run_making(parent, "fork", &program)?;
        let inner = if any { result as i32 } else { pid as i32 };
        let slot = self
            .tasks
            .get(&parent)
            .map(|task| task.slot)
            .ok_or_else(|| missing(parent))?;
        let slot = Slot {
            tgid: inner,
            tid: inner,
            ..slot
        };
        let task = born(outer)?;
        self.tasks.insert(
            pid,
            Task {
                task: Some(task),
                slot,
                pid,
                outer,
                entered: None,
            },
        );
        Ok(())
    }

    /// Starts a thread in the process of `pid`.
    fn thread(&mut self, pid: u32, tid: u32) -> Result<(), RestoreError> {
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM;
        let mut program = Program::new();
        clone3(
            &mut program,
            flags as u64,
            0,
            Some(tid),
            &format!("start thread {tid}"),
        );
        let (outer, _) = self.run_making(pid, "start a thread", &program)?;
        let nth = self.tasks.values().filter(|task| task.pid == pid).count() - 1;
        let block = &self.plan.block;
        let slot = self
            .tasks
            .get(&pid)
            .map(|task| task.slot)
            .ok_or_else(|| missing(pid))?;
        let base = block.base + (block.leader + nth * block.thread) as u64;
        let slot = Slot {
            base,
            length: block.thread,
            tgid: pid as i32,
            tid: tid as i32,
            ..slot
        };
        let task = born(outer)?;
        self.tasks.insert(
            tid,
            Task {
                task: Some(task),
                slot,
                pid,
                outer,
                entered: None,
            },
        );
        Ok(())
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

    /// Ends a process by exit.
    fn exit(&mut self, pid: u32, code: i32) -> Result<(), RestoreError> {
        let mut program = Program::new();
        program.try_call(libc::SYS_exit_group, &[code.into()], "exit");
        let (task, slot) = self.take(pid)?;
        match stub::run(slot, &program, task, &mut |_| {}) {
            Err(RunError::Gone(_)) => {
                self.tasks.remove(&pid);
                Ok(())
            }
            Err(error) => Err(broke(&self.who(pid), error)),
            Ok(_) => Err(missing(pid)),
        }
    }

    /// Puts a descriptor of a process that has ended at `place` in `pid`.
    fn dead(&mut self, pid: u32, place: u32, flags: u32) -> Result<(), RestoreError> {
        let helper = tree::HELPERS;
        self.fork(pid, helper, libc::SIGCHLD as u32)?;
        let inner = self.tasks.get(&helper).map_or(0, |task| task.slot.tid);
        let mut program = Program::new();
        let args = [inner.into(), flags.into()];
        let fd = program.must(libc::SYS_pidfd_open, &args, "open the helper");
        let args = [Arg::Result(fd), place.into(), libc::O_CLOEXEC.into()];
        program.must(libc::SYS_dup3, &args, "keep its descriptor");
        program.must(libc::SYS_close, &[Arg::Result(fd)], "close the other");
        self.run(pid, "a descriptor of a process that has ended", &program)?;
        self.exit(helper, 0)?;
        let mut program = Program::new();
        let args = [inner.into(), 0.into(), libc::__WALL.into(), 0.into()];
        program.must(libc::SYS_wait4, &args, "wait for the helper");
        self.run(pid, "a descriptor of a process that has ended", &program)
    }

    /// Ends a process the way it had ended.
    fn zombie(&mut self, pid: u32, wait_status: i32) -> Result<(), RestoreError> {
        let name = self
            .snapshot
            .processes
            .iter()
            .find(|p| p.pid == pid)
            .and_then(|p| p.threads.first())
            .map(|t| t.name.clone());
        let mut program = Program::new();
        let name = program.bytes([&name.unwrap_or_default()[..], &[0]].concat());
        program.must(libc::SYS_prctl, &[15.into(), name.into()], "take its name");
        // A core file was written the first time.
        let none = program.words(&[0, 0]);
        program.must(
            libc::SYS_prlimit64,
            &[0.into(), libc::RLIMIT_CORE.into(), none.into(), 0.into()],
            "write no core file",
        );
        self.run(pid, "end again", &program)?;
        let signal = libc::WTERMSIG(wait_status);
        if libc::WIFEXITED(wait_status) || !(1..=64).contains(&signal) {
            return self.exit(pid, libc::WEXITSTATUS(wait_status));
        }
        let (task, _) = self.take(pid)?;
        // It has stopped for a signal: another one, which must not be blocked, takes its place.
        task.set_signal_mask(0)
            .map_err(failed(format!("process {pid}: unblocking signals")))?;
        let mut running = task
            .resume(signal)
            .map_err(failed(format!("process {pid}: end by signal {signal}")))?;
        if signal == libc::SIGKILL {
            let _ = sys::kill(running.tid(), signal);
        }
        loop {
            match running
                .wait()
                .map_err(failed(format!("process {pid}: end by signal {signal}")))?
            {
                Waited::Gone => break,
                Waited::Stopped(task) => {
                    running = task
                        .resume(signal)
                        .map_err(failed(format!("process {pid}: resuming")))?;
                }
            }
        }
        self.tasks.remove(&pid);
        Ok(())
    }

    /// Registers what can come later with userfaultfds, and has it served from now on.
    fn leave_for_later(&mut self, serve: &Serve<'_>) -> Result<(), RestoreError> {
        let no = |why: String| failed("preparing a lazy restore")(io::Error::other(why));
        let snapshot = self.snapshot;
        let alive = snapshot.processes.iter();
        let alive: Vec<&Process> = alive.filter(|p| p.state() != State::Zombie).collect();
        let setup = lazy::Setup::new(&alive, self.plan.ours.clone()).map_err(no)?;
        let protect = false;
        let mut found: Option<(Vault, u32)> = None;
        let mut processes = Vec::new();
        for process in &alive {
            let number = processes.len() as u32;
            let Some(memory) = lazy::waiting(self.plan, number, process) else {
                continue;
            };
            let (pid, what) = (process.pid, "leave memory for later");
            match &found {
                Some((_, holder)) => self.run(pid, what, &setup.fetch_vault(*holder))?,
                None => {
                    let (program, output) = setup.make_vault();
                    let outcome = self.ask(pid, what, &program)?;
                    let mut program = Program::new();
                    for (nth, end) in lazy::ends(outcome.output(output)).into_iter().enumerate() {
                        setup.place(&mut program, end.into(), setup.descriptor + nth as u32);
                    }
                    self.run(pid, what, &program)?;
                    let receiver = self.descriptor(pid, setup.descriptor)?;
                    let sender = self.descriptor(pid, setup.descriptor + 1)?;
                    found = Some((Vault::new(receiver, sender), pid));
                }
            }
            let made = self.ask(pid, what, &setup.make())?;
            let fd = made.result(0).map_err(failed(what))? as u32;
            let uffd = lazy::register(&setup, self.descriptor(pid, fd)?, &memory, protect)
                .map_err(|errno| failed(format!("process {pid}: {what}"))(errno.into()))?;
            if let Some((vault, _)) = &found {
                let label = Label {
                    number,
                    parent: None,
                };
                vault.keep(label, uffd.as_fd()).map_err(failed(what))?;
            }
            let mut program = Program::new();
            program.must(libc::SYS_close, &[fd.into()], "close the userfaultfd");
            self.run(pid, what, &program)?;
            let outer = self.tasks.get(&pid).map_or(0, |task| task.outer as u32);
            processes.push((outer, memory));
        }
        let Some((vault, _)) = found else {
            return Ok(());
        };
        serve(LazyJob {
            vault,
            descriptor: setup.descriptor,
            processes,
            protect,
        })
    }

    fn fill(
        &self,
        checkpoint: &Checkpoint,
        options: &RestoreOptions<'_>,
    ) -> Result<(), RestoreError> {
        let mut targets = Vec::new();
        for process in self
            .snapshot
            .processes
            .iter()
            .filter(|p| p.state() != State::Zombie)
        {
            let (Some(memory), Some(task)) = (&process.memory, self.tasks.get(&process.pid)) else {
                continue;
            };
            let area = |m: &images::proto::Mapping| {
                let zero_matters = m.kind() == Kind::FilePrivate;
                matches!(m.kind(), Kind::Anonymous | Kind::FilePrivate).then_some(Area {
                    range: m.start..m.end,
                    place: Place {
                        zero_matters,
                        later: options.lazy.is_some() && lazy::can_wait(m),
                    },
                })
            };
            let areas = memory.mappings.iter().filter_map(area).collect();
            targets.push(Target::Process {
                space: memory.space,
                pid: task.outer as u32,
                areas,
            });
        }
        for &(maker, fd, space, size) in &self.plan.objects {
            let file = self.descriptor(maker, fd)?;
            targets.push(Target::Object { space, file, size });
        }
        pages::fill(checkpoint, &targets, options.progress).map(|_| ())
    }

    /// From here on, what is written is noted.
    fn watch(&mut self, checkpoint: &Checkpoint) -> Result<(), RestoreError> {
        let Ok(mut tracking) = Tracking::new() else {
            return Ok(());
        };
        let shared = self.snapshot.shared.iter().map(|shared| shared.space);
        tracking.reserve(shared.max().unwrap_or(0));
        for process in &self.snapshot.processes {
            let (Some(memory), Some(task)) = (&process.memory, self.tasks.get(&process.pid)) else {
                continue;
            };
            let outer = task.outer as u32;
            let pages = checkpoint.pages(memory.space);
            if !track::by_userfaultfd() {
                let tracker = Box::new(SoftDirty::new(outer));
                tracking.adopt(outer, memory.space, tracker, pages)?;
                continue;
            }
            let (program, made) = track::userfaultfd();
            let outcome = self.ask(process.pid, "make a userfaultfd", &program)?;
            let fd = outcome.results[made] as u32;
            let uffd = self.descriptor(process.pid, fd)?;
            let mut program = Program::new();
            program.must(libc::SYS_close, &[fd.into()], "close the userfaultfd");
            self.run(process.pid, "close the userfaultfd", &program)?;
            let tracker = Box::new(WriteProtect::new(outer, uffd));
            tracking.adopt(outer, memory.space, tracker, pages)?;
        }
        for &(maker, fd, space, _) in &self.plan.objects {
            let stat = nix::sys::stat::fstat(self.descriptor(maker, fd)?);
            let stat = stat.map_err(|errno| failed("looking at shared memory")(errno.into()))?;
            let key = (stat.st_dev, stat.st_ino);
            tracking.adopt_object(key, space, self.snapshot, checkpoint.pages(space))?;
        }
        self.tracking = Some(tracking);
        Ok(())
    }

    /// Our duplicate of a descriptor of a process under construction.
    fn descriptor(&self, pid: u32, fd: u32) -> Result<OwnedFd, RestoreError> {
        let task = self.tasks.get(&pid).ok_or_else(|| missing(pid))?;
        let doing = || failed(format!("taking descriptor {fd} of process {pid}"));
        let pidfd = sys::pidfd_open(task.outer).map_err(doing())?;
        sys::pidfd_getfd(&pidfd, fd).map_err(doing())
    }

    /// Takes the stub out of every process, sets all registers, and lets everything run.
    fn let_go(&mut self, options: &RestoreOptions<'_>) -> Result<(), RestoreError> {
        if self.init.is_some() {
            self.become_init(options)?;
        }
        let alive: Vec<&Process> = self
            .snapshot
            .processes
            .iter()
            .filter(|p| p.state() != State::Zombie)
            .collect();
        for process in &alive {
            for thread in &process.threads {
                self.resume_wait(thread)?;
            }
            let (task, _) = self.take(process.pid)?;
            let task = self
                .remove_stub(task)
                .map_err(|error| broke(&self.who(process.pid), error))?;
            self.put(process.pid, task);
            for thread in &process.threads {
                self.set_thread(process, thread)?;
            }
        }
        (options.before_it_runs)();
        // From here on the job does not need us. Everybody is freed before anybody runs.
        for task in self.tasks.values() {
            if let Some(task) = &task.task {
                task.set_options(0).map_err(failed("letting the job go"))?;
            }
        }
        for process in &alive {
            if process.state() == State::Stopped
                && let Some(task) = self.tasks.get(&process.pid)
            {
                let _ = sys::kill(task.outer, process.wait_status);
            }
        }
        let seen = |pid: u32| self.tasks.get(&pid).map(|task| task.outer);
        outer::settle(self.snapshot, self.plan.host.terminal, &seen);
        for (_, entry) in std::mem::take(&mut self.tasks) {
            if let Some(task) = entry.task {
                let _ = task.detach(0);
            }
        }
        Ok(())
    }

    /// A thread caught in a restartable wait enters it again with the time that was left, so that the kernel knows how to go on.
    fn resume_wait(&mut self, thread: &Thread) -> Result<(), RestoreError> {
        let Some(slot) = self.tasks.get(&thread.tid).map(|task| task.slot) else {
            return Ok(());
        };
        let Some((mut r, time)) = waits::entry(thread, slot.base) else {
            return Ok(());
        };
        let tid = thread.tid;
        let (task, _) = self.take(tid)?;
        let doing = || failed(format!("thread {tid}: entering its wait again"));
        let time: Vec<u8> = time.iter().flat_map(|word| word.to_ne_bytes()).collect();
        sys::write_memory(task.tid(), &[(slot.base, &time)]).map_err(doing())?;
        r.rip = self.syscall_address();
        task.set_registers(&r).map_err(doing())?;
        let running = task.resume_to_syscall(0).map_err(doing())?;
        let task = expect_stop(running, tid)?;
        // Interrupted before it begins, the call ends as a signal would end it: nothing behind it is ever executed.
        let task = live::interrupt_stop(task, 0).map_err(|error| broke(&self.who(tid), error))?;
        let result = task.registers().map_err(doing())?.rax;
        self.put(tid, task);
        if let Some(entry) = self.tasks.get_mut(&tid) {
            entry.entered = Some(result);
        }
        Ok(())
    }

    /// Some `syscall` instruction of the stub.
    fn syscall_address(&self) -> u64 {
        let at = stub::code()
            .windows(2)
            .position(|bytes| bytes == [0x0f, 0x05])
            .unwrap_or(0);
        self.plan.block.base + at as u64
    }

    /// Unmaps the stub by its own last instruction; the task never returns from that call to user mode.
    fn remove_stub(&self, task: Stopped) -> Result<Stopped, RunError> {
        let block = &self.plan.block;
        let args = [block.base, block.length() as u64, 0, 0, 0, 0];
        let (task, _) = seed::call_at(task, self.syscall_address(), libc::SYS_munmap as u64, args)?;
        live::interrupt_stop(task, 0)
    }

    fn set_thread(&mut self, process: &Process, thread: &Thread) -> Result<(), RestoreError> {
        let who = self.who(thread.tid);
        let task = self
            .tasks
            .get(&thread.tid)
            .and_then(|task| task.task.as_ref())
            .ok_or_else(|| missing(thread.tid))?;
        let _ = process;
        let entered = self.tasks.get(&thread.tid).and_then(|task| task.entered);
        let registers = waits::registers(thread, entered).ok_or_else(|| missing(thread.tid))?;
        task.set_xstate(&thread.xstate)
            .map_err(failed(format!("{who}: setting the xsave area")))?;
        task.set_registers(&registers)
            .map_err(failed(format!("{who}: setting registers")))?;
        task.set_signal_mask(thread.blocked)
            .map_err(failed(format!("{who}: setting the signal mask")))
    }

    /// The init of the namespace becomes a program that waits for the job's processes.
    fn become_init(&mut self, options: &RestoreOptions<'_>) -> Result<(), RestoreError> {
        let mut argv: Vec<String> = options
            .init
            .iter()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        argv.push(self.snapshot.root.to_string());
        let mut program = Program::new();
        let pointers: Vec<_> = argv.iter().map(|arg| program.string(arg)).collect();
        let path = pointers[0];
        let array = program.words(&vec![0; argv.len() + 1]);
        for (nth, pointer) in pointers.iter().enumerate() {
            program.point(array, 8 * nth, *pointer);
        }
        let none = program.words(&[0]);
        program.must(
            libc::SYS_close_range,
            &[0.into(), u32::MAX.into(), 0.into()],
            "close everything",
        );
        program.must(
            libc::SYS_execve,
            &[path.into(), array.into(), none.into()],
            format!("run {}", argv[0]),
        );
        let (task, slot) = self.take(INIT)?;
        let mut run = stub::Run::new(slot, &program);
        let who = "the init of the job's namespace";
        let running = run.start(task).map_err(|error| broke(who, error))?;
        let Ok(mut running) = running else {
            return Err(missing(INIT));
        };
        loop {
            match running.wait().map_err(failed(who))? {
                Waited::Gone => return Err(missing(INIT)),
                Waited::Stopped(task) if task.stop() == Stop::Event(libc::PTRACE_EVENT_EXEC) => {
                    task.set_signal_mask(0).map_err(failed(who))?;
                    self.put(INIT, task);
                    return Ok(());
                }
                Waited::Stopped(task) if matches!(task.stop(), Stop::Signal(_)) => {
                    return Err(failed(format!("{who}: running {}", argv[0]))(
                        io::Error::other("it could not be executed"),
                    ));
                }
                Waited::Stopped(task) => running = task.resume(0).map_err(failed(who))?,
            }
        }
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

/// A task that has just been made and attached with its parent: waits for its first stop.
fn born(outer: i32) -> Result<Stopped, RestoreError> {
    if outer == 0 {
        return Err(failed("making a task")(io::Error::other(
            "it did not show up",
        )));
    }
    expect_stop(Running::attached(outer), outer as u32)
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

/// clone3(2) with the child's id chosen.
fn clone3(program: &mut Program, flags: u64, exit_signal: u64, id: Option<u32>, label: &str) {
    let ids = program.bytes(id.unwrap_or(0).to_ne_bytes());
    let args = program.words(&[
        flags,
        0,
        0,
        0,
        exit_signal,
        0,
        0,
        0,
        0,
        u64::from(id.is_some()),
        0,
    ]);
    if id.is_some() {
        program.point(args, 64, ids);
    }
    program.must(libc::SYS_clone3, &[args.into(), 88.into()], label);
}

/// Descriptors above the job's own are used while it is built.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
