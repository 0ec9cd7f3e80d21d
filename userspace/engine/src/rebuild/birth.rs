//! New processes and threads.

use std::io;

use remote::seed::{self, Birth};
use remote::stub::Slot;
use remote::{Expect, Program, Running, Stopped};

use super::{BOTTOM, Builder, INIT, TOP, Task, broke, expect_stop, failed, missing};
use crate::{RestoreError, areas, tree, vdso};

impl Builder<'_> {
    /// A seed with the stub, the vdso out of the way, and nothing else mapped.
    pub(super) fn seed(
        &mut self,
        number: u32,
        birth: &Birth,
        ids: (i32, i32),
    ) -> Result<(), RestoreError> {
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
        let text = remote::sys::read_text(&path).map_err(failed(format!("reading {path}")))?;
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

    /// Forks in the process of `parent`; the child gets the id we choose.
    pub(super) fn fork(
        &mut self,
        parent: u32,
        pid: u32,
        exit_signal: u32,
    ) -> Result<(), RestoreError> {
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
    pub(super) fn thread(&mut self, pid: u32, tid: u32) -> Result<(), RestoreError> {
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
}

/// A task that has just been made and attached with its parent: waits for its first stop.
pub(super) fn born(outer: i32) -> Result<Stopped, RestoreError> {
    if outer == 0 {
        return Err(failed("making a task")(io::Error::other(
            "it did not show up",
        )));
    }
    expect_stop(Running::attached(outer), outer as u32)
}

/// clone3(2) with the child's id chosen.
pub(super) fn clone3(
    program: &mut Program,
    flags: u64,
    exit_signal: u64,
    id: Option<u32>,
    label: &str,
) {
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
