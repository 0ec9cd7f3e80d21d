//! Pages: brought in now or left for later, and watched.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use images::Checkpoint;
use images::proto::Process;
use images::proto::mapping::Kind;
use images::proto::process::State;
use memory::SoftDirty;
use memory::serve::{Label, Vault};
use memory::track::WriteProtect;
use remote::Program;

use super::{Builder, failed};
use crate::pages::{self, Area, Place, Target};
use crate::{LazyJob, RestoreError, RestoreOptions, Serve, Tracking, lazy, track};

impl Builder<'_> {
    /// Registers what can come later with userfaultfds, and has it served from now on.
    pub(super) fn leave_for_later(
        &mut self,
        checkpoint: &Checkpoint,
        serve: &Serve<'_>,
        watch: bool,
    ) -> Result<(), RestoreError> {
        let no = |why: String| failed("preparing a lazy restore")(io::Error::other(why));
        let snapshot = self.snapshot;
        let alive = snapshot.processes.iter();
        let alive: Vec<&Process> = alive.filter(|p| p.state() != State::Zombie).collect();
        let setup = lazy::Setup::new(&alive, self.plan.ours.clone()).map_err(no)?;
        let protect = watch && track::by_userfaultfd();
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
            lazy::put_first(checkpoint, process, &memory, &uffd, protect);
            let mut program = Program::new();
            program.must(libc::SYS_close, &[fd.into()], "close the userfaultfd");
            self.run(pid, what, &program)?;
            let outer = self.tasks.get(&pid).map_or(0, |task| task.outer as u32);
            if protect {
                self.lazy.insert(outer, uffd);
            }
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

    pub(super) fn fill(
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
            let later = match options.lazy {
                Some(_) if self.plan.host.in_users_of_ours() => lazy::later(process),
                _ => BTreeSet::new(),
            };
            let area = |m: &images::proto::Mapping| {
                let zero_matters = m.kind() == Kind::FilePrivate;
                matches!(m.kind(), Kind::Anonymous | Kind::FilePrivate).then_some(Area {
                    range: m.start..m.end,
                    place: Place {
                        zero_matters,
                        later: later.contains(&m.start),
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
    pub(super) fn watch(&mut self, checkpoint: &Checkpoint) -> Result<(), RestoreError> {
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
            // Once the leader has ended, nothing is seen through it.
            if process.threads.iter().any(|thread| thread.ended.is_some()) {
                continue;
            }
            let pages = checkpoint.pages(memory.space);
            if !track::by_userfaultfd() {
                let tracker = Box::new(SoftDirty::new(outer));
                tracking.adopt(outer, memory.space, tracker, pages, None)?;
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
            let lazy = self.lazy.remove(&outer);
            tracking.adopt(outer, memory.space, tracker, pages, lazy)?;
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
}
