//! The last step: registers are set, and everything runs.

use std::time::Duration;

use images::proto::process::State;
use images::proto::{Ended, Process, Thread};
use remote::confinement::SUSPEND_SECCOMP;
use remote::seed::{self};
use remote::stub::{self};
use remote::{RunError, Stopped, live, sys, task};

use super::{Builder, broke, expect_stop, failed, missing};
use crate::files::outer;
use crate::procfs::Stat;
use crate::{RestoreError, RestoreOptions, dispatch, waits};

impl Builder<'_> {
    /// Takes the stub out of every process, sets all registers, and lets everything run.
    pub(super) fn let_go(&mut self, options: &RestoreOptions<'_>) -> Result<(), RestoreError> {
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
            for thread in &process.threads {
                if let Some(ended) = &thread.ended {
                    self.end_thread(thread.tid, ended)?;
                }
            }
            // The stub is taken out by one who runs on.
            let mut lasting = process.threads.iter().filter(|t| t.ended.is_none());
            let last = lasting.next().map_or(process.pid, |thread| thread.tid);
            let (task, _) = self.take(last)?;
            let task = self
                .remove_stub(task)
                .map_err(|error| broke(&self.who(last), error))?;
            self.put(last, task);
            for thread in process.threads.iter().filter(|t| t.ended.is_none()) {
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
    pub(super) fn resume_wait(&mut self, thread: &Thread) -> Result<(), RestoreError> {
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

    /// Filters of system calls do nothing until a process is let go.
    pub(super) fn suspend_filters(&self, pid: u32) -> Result<(), RestoreError> {
        let options = task::FOLLOW | libc::PTRACE_O_EXITKILL | SUSPEND_SECCOMP;
        for entry in self.tasks.values().filter(|task| task.pid == pid) {
            if let Some(task) = &entry.task {
                let doing = format!("process {pid}: suspending filters of system calls");
                task.set_options(options).map_err(failed(doing))?;
            }
        }
        Ok(())
    }

    /// A thread ends as it had ended. It is let go for that: of a leader whose process lives nobody could take the end.
    fn end_thread(&mut self, tid: u32, ended: &Ended) -> Result<(), RestoreError> {
        let (task, _) = self.take(tid)?;
        let (outer, doing) = (task.tid(), || failed(format!("thread {tid}: ending again")));
        let mut r = task.registers().map_err(doing())?;
        (r.rip, r.rax, r.orig_rax) = (self.syscall_address(), libc::SYS_exit as u64, u64::MAX);
        r.rdi = u64::from(ended.wait_status >> 8 & 0xff);
        task.set_registers(&r).map_err(doing())?;
        task.set_options(0).map_err(doing())?;
        task.detach(0).map_err(doing())?;
        while !Stat::read(outer as u32).map_err(doing())?.is_zombie() {
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    /// Some `syscall` instruction of the stub.
    pub(super) fn syscall_address(&self) -> u64 {
        let at = stub::code()
            .windows(2)
            .position(|bytes| bytes == [0x0f, 0x05])
            .unwrap_or(0);
        self.plan.block.base + at as u64
    }

    /// Unmaps the stub by its own last instruction; the task never returns from that call to user mode.
    pub(super) fn remove_stub(&self, task: Stopped) -> Result<Stopped, RunError> {
        let block = &self.plan.block;
        let args = [block.base, block.length() as u64, 0, 0, 0, 0];
        let (task, _) = seed::call_at(task, self.syscall_address(), libc::SYS_munmap as u64, args)?;
        live::interrupt_stop(task, 0)
    }

    pub(super) fn set_thread(
        &mut self,
        process: &Process,
        thread: &Thread,
    ) -> Result<(), RestoreError> {
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
        if let Some(wanted) = &thread.dispatch {
            task.set_dispatch(&dispatch::restored(wanted))
                .map_err(failed(format!("{who}: sending its system calls to itself")))?;
        }
        task.set_signal_mask(thread.blocked)
            .map_err(failed(format!("{who}: setting the signal mask")))
    }
}
