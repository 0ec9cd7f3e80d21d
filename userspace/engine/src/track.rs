//! What is known of a job's memory between two checkpoints of it, so that the next one need only take what was written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use images::proto::Snapshot;
use images::{Checkpoint, Job, PageSet, Writer};
use memory::Tracking as Method;
use memory::track::{WriteTracker, Written};
use memory::uffd::Userfault;
use remote::sys;

pub use self::incoming::{Incoming, Incomplete, Missing};
use self::ledger::Ledger;
pub(crate) use self::ledger::Settled;
pub(crate) use self::numbers::SpaceNumbers;
use self::space::Space;
pub use self::watch::by_userfaultfd;
pub(crate) use self::watch::userfaultfd;
use crate::freeze::Frozen;
use crate::members::Members;
use crate::pages::{self, Source};
use crate::procfs::{self, Stat};
use crate::{CheckpointError, Progress, RestoreError, Scope, areas, fault, maps};

mod incoming;
mod ledger;
mod numbers;
mod shared;
mod space;
mod watch;

/// The state of a job's memory as of its newest checkpoint. Belongs to one job and is dropped with it; then nothing
/// of it is left in the job.
#[derive(Default)]
pub struct Tracking {
    /// The checkpoint that the ledgers speak of.
    base: Option<Checkpoint>,
    /// Watched processes, by pid.
    spaces: BTreeMap<u32, Space>,
    /// Shared memory that is followed, by what the kernel knows it by.
    objects: HashMap<shared::Key, shared::Object>,
    /// The last number given to a space.
    last_number: u64,
    /// See [`Tracking::lost`].
    lost: Vec<(u64, PageSet)>,
    /// Who brings in the memory of the job, while some is missing.
    incoming: Option<Box<dyn Incoming>>,
}

/// So few pages are left to the freeze without another round: less than 1 ms of copying.
const FEW_PAGES: u64 = 256;
/// More rounds bring nothing that a short freeze does not.
const ROUNDS: usize = 12;

impl Tracking {
    /// Tracking of a job that has no checkpoint yet; `None` with the reason where the kernel cannot do it.
    ///
    /// # Errors
    /// Why the kernel cannot, for people.
    pub fn new() -> Result<Self, String> {
        match memory::tracking() {
            Method::WriteProtect | Method::SoftDirty { .. } => Ok(Self::default()),
            Method::None { why } => Err(why.clone()),
        }
    }

    /// Numbers up to this one are used.
    pub(crate) fn reserve(&mut self, number: u64) {
        self.last_number = self.last_number.max(number);
    }

    /// Watches a stopped process whose memory has just been filled with the pages `present` of space `number`, or will be through the
    /// userfaultfd `lazy`.
    pub(crate) fn adopt(
        &mut self,
        pid: u32,
        number: u64,
        mut tracker: Box<dyn WriteTracker>,
        present: PageSet,
        lazy: Option<Userfault>,
    ) -> Result<(), RestoreError> {
        let doing = || format!("watching process {pid}");
        let born = Stat::read(pid).map_err(|source| RestoreError::System {
            doing: doing(),
            source,
        })?;
        let running = areas::running(pid).map_err(|error| RestoreError::System {
            doing: doing(),
            source: std::io::Error::other(error),
        })?;
        let mut areas = areas::private(&running);
        areas.retain(|(_, kind)| tracker.covers(*kind));
        let ranges: Vec<_> = areas.iter().map(|(range, _)| range.clone()).collect();
        // All that is there was just put there.
        tracker.collect(&ranges, false, &mut Written::default())?;
        let mut space = Space::new(number, born.field(22), tracker);
        space.ledger = Ledger::of(present);
        space.areas = areas;
        space.lazy = lazy;
        self.spaces.insert(pid, space);
        self.reserve(number);
        Ok(())
    }

    /// Follows a shared memory object of stopped processes that are watched, just filled with the pages `present`.
    pub(crate) fn adopt_object(
        &mut self,
        key: shared::Key,
        number: u64,
        snapshot: &Snapshot,
        present: PageSet,
    ) -> Result<(), RestoreError> {
        let Some(views) = shared::views(snapshot).remove(&number) else {
            return Ok(());
        };
        let mut object = shared::Object::new(number);
        let data = pages::runs(&present.iter().collect::<Vec<_>>());
        object.look(&views, &data, &mut self.spaces, &HashSet::new())?;
        object.ledger.committed(present);
        self.objects.insert(key, object);
        self.forked(views.iter().map(|view| view.0))?;
        Ok(())
    }

    /// Between two checkpoints: makes huge pages again of those that the last one has taken apart and that were written since. Says whether
    /// to ask again later.
    pub fn restore_huge_pages(&self) -> bool {
        let spaces = self.spaces.values();
        spaces.fold(false, |left, space| {
            left | space.tracker.restore_huge_pages()
        })
    }

    /// Says from which checkpoint the job was restored.
    pub fn set_base(&mut self, base: Checkpoint) {
        self.base = Some(base);
    }

    /// The checkpoint that the next one of `job` builds on.
    pub(crate) fn base(&self, job: &Job) -> Option<&Checkpoint> {
        let base = self.base.as_ref()?;
        base.path().starts_with(job.path()).then_some(base)
    }

    /// Sees to it that every process of the job is watched, as far as that can be, and that all of it is taken if there is no base.
    pub(crate) fn begin(&mut self, scope: Scope, job: &Job) {
        if self.base(job).is_none_or(|base| !base.path().exists()) {
            self.await_memory();
            self.base = None;
            let spaces = self.spaces.values_mut().map(|space| &mut space.ledger);
            let objects = self.objects.values_mut().map(|object| &mut object.ledger);
            spaces.chain(objects).for_each(Ledger::forget_base);
        }
        let members = Members::now(scope, None).order;
        // Through a leader that has ended nothing is seen of its process, which is taken whole then.
        let born = |pid: u32| {
            let stat = Stat::read(pid).ok().filter(|stat| !stat.is_zombie())?;
            Some(stat.field(22))
        };
        self.spaces
            .retain(|pid, space| members.contains(pid) && born(*pid) == Some(space.born));
        for pid in members {
            if self.spaces.contains_key(&pid) {
                continue;
            }
            let Some(born) = born(pid) else { continue };
            match watch::watch(pid) {
                Ok(tracker) => {
                    self.last_number += 1;
                    self.spaces
                        .insert(pid, Space::new(self.last_number, born, tracker));
                }
                // It has ended, is not ours to stop, ...: the freeze will tell, or it is taken whole.
                Err(error) => tracing::debug!("process {pid} is not watched: {error}"),
            }
        }
        self.lost.clear();
        for (pid, space) in &mut self.spaces {
            space.begin(*pid);
        }
        self.objects.values_mut().for_each(shared::Object::begin);
    }

    /// Copies what was written while the job runs, until little is left or it does not get less. Who has to stop for a look is looked at
    /// once only, the whole job standing still for it.
    pub(crate) fn copy(
        &mut self,
        scope: Scope,
        writer: &mut Writer,
        progress: &dyn Progress,
    ) -> Result<(), CheckpointError> {
        // The job has the other processors.
        let threads = (pages::threads() / 2).max(1);
        let mut before = u64::MAX;
        for round in 0..ROUNDS {
            let live =
                |space: &Space| space.is_live() && (round == 0 || !space.tracker.needs_stop());
            let stops = |space: &Space| live(space) && space.tracker.needs_stop();
            let frozen = if self.spaces.values().any(stops) {
                let frozen = Frozen::freeze(scope, None)?;
                if self.shares_memory() {
                    return Ok(());
                }
                Some(frozen)
            } else {
                None
            };
            let lost = &mut self.lost;
            self.spaces
                .retain(|&pid, space| !live(space) || space.look(pid).is_ok() || space.lose(lost));
            self.look_at_shared();
            self.check_direct();
            let mut pages = 0;
            for (&pid, space) in self.spaces.iter_mut().filter(|(_, space)| live(space)) {
                let left = space.ledger.left(procfs::resident(pid));
                if round == 1 && space.ledger.outruns(left) && left > FEW_PAGES {
                    space.outran();
                }
                pages += left;
            }
            drop(frozen);
            fault::at(&format!("round {round} looked"))?;
            let mut sources: Vec<_> = (self.objects.values())
                .filter_map(shared::Object::live_source)
                .collect();
            pages += sources.iter().map(Source::estimate).sum::<u64>() / memory::PAGE_SIZE;
            let little = pages <= FEW_PAGES || pages > before / 10 * 7;
            if round > 0 && little {
                break;
            }
            before = pages;
            if round > 0 {
                writer.next_round();
            }
            let spaces = self.spaces.iter().filter(|(_, space)| live(space));
            sources.extend(spaces.map(|(&pid, space)| space.source(pid, &space.areas, true)));
            let copied = pages::dump(writer, &sources, threads, progress)?;
            for (source, copied) in sources.iter().zip(copied) {
                if let Some(ledger) = self.ledger_mut(source) {
                    ledger.took(copied);
                }
            }
            fault::at(&format!("round {round} copied"))?;
        }
        Ok(())
    }

    /// Looks what running processes have written to shared memory.
    fn look_at_shared(&mut self) {
        let found = shared::found(&self.spaces);
        let viewers = found.values().flat_map(shared::Found::spaces);
        let Ok(forked) = self.forked(viewers.collect::<HashSet<_>>()) else {
            // Somebody has ended: the freeze will tell.
            return;
        };
        for (key, found) in &found {
            let object = self.objects.entry(*key).or_insert_with(|| {
                self.last_number += 1;
                shared::Object::new(self.last_number)
            });
            object.look_live(found, &mut self.spaces, &forked);
        }
    }

    /// Of these spaces, those whose processes may have forked since this was asked last.
    fn forked(
        &mut self,
        spaces: impl IntoIterator<Item = u64>,
    ) -> Result<HashSet<u64>, memory::Error> {
        let asked: HashSet<u64> = spaces.into_iter().collect();
        let mut forked = HashSet::new();
        for (&pid, space) in &mut self.spaces {
            let tells = asked.contains(&space.number) && !space.tracker.needs_stop();
            if tells && space.may_have_forked(pid)? {
                forked.insert(space.number);
            }
        }
        Ok(forked)
    }

    /// Leaves to the freeze what direct I/O may have been writing to when it was looked at.
    fn check_direct(&mut self) {
        for (&pid, space) in &mut self.spaces {
            if space.check_direct(pid) {
                let number = space.number;
                (self.objects.values_mut()).for_each(|object| object.leave_to_freeze(number));
            }
        }
    }

    /// Whether two processes share an address space: a look at the one would hide from the other what was written. The capture
    /// refuses that, if it lasts.
    fn shares_memory(&self) -> bool {
        let same = |a: u32, b: u32| {
            sys::compare(a as i32, b as i32, sys::Share::Memory, 0, 0)
                .is_ok_and(|order| order == std::cmp::Ordering::Equal)
        };
        let pids: Vec<u32> = self.spaces.keys().copied().collect();
        let mut rest = pids.as_slice();
        while let Some((&first, others)) = rest.split_first() {
            if others.iter().any(|&other| same(first, other)) {
                return true;
            }
            rest = others;
        }
        false
    }

    /// Numbers for the spaces of a frozen job. Address spaces that are no longer what they were get new ones.
    pub(crate) fn numbers(&self) -> SpaceNumbers {
        SpaceNumbers {
            watched: (self.spaces.iter())
                .map(|(&pid, space)| (pid, space.number))
                .collect(),
            objects: (self.objects.iter())
                .map(|(&key, object)| (key, object.number))
                .collect(),
            sockets: self.incoming.as_ref().map(|incoming| incoming.sockets()),
            last: self.last_number,
        }
    }

    fn ledger_mut(&mut self, source: &Source) -> Option<&mut Ledger> {
        match source {
            Source::Process { .. } => self.space_mut(source).map(|space| &mut space.ledger),
            Source::Object { space, .. } => {
                let mut objects = self.objects.values_mut();
                let found = objects.find(|object| object.number == *space);
                found.map(|object| &mut object.ledger)
            }
        }
    }

    fn space_mut(&mut self, source: &Source) -> Option<&mut Space> {
        match source {
            Source::Process { pid, space, .. } => {
                let found = self.spaces.get_mut(pid);
                found.filter(|found| found.number == *space)
            }
            Source::Object { .. } => None,
        }
    }

    /// In a frozen job: drops the address spaces that an exec has replaced, and those of processes whose leader has ended.
    pub(crate) fn drop_replaced(&mut self, frozen: &Frozen) {
        let lost = &mut self.lost;
        let leads = |pid: u32| (frozen.processes.get(&pid)).is_none_or(|it| it.speaker() == pid);
        self.spaces.retain(|&pid, space| {
            let mut unused = Written::default();
            let same = leads(pid) && space.tracker.collect(&[], false, &mut unused).is_ok();
            same || space.lose(lost)
        });
    }

    /// Spaces that were copied and then gone, with what was copied of them. After [`Tracking::remaining`].
    pub(crate) fn lost(&mut self) -> Vec<(u64, PageSet)> {
        std::mem::take(&mut self.lost)
    }

    /// In a frozen job: of `sources`, what has to be read now.
    pub(crate) fn remaining(
        &mut self,
        snapshot: &mut Snapshot,
        numbers: &SpaceNumbers,
        sources: &[Source],
    ) -> Result<Vec<Source>, CheckpointError> {
        let mut remaining = Vec::new();
        for source in sources {
            let Source::Process {
                pid, areas, space, ..
            } = source
            else {
                continue;
            };
            let Some(watched) = self.space_mut(source) else {
                continue;
            };
            let guarded = watched.look_at(areas)?;
            remaining.push(watched.source(*pid, areas, false));
            let memories = snapshot
                .processes
                .iter_mut()
                .filter_map(|p| p.memory.as_mut());
            for memory in memories.filter(|memory| memory.space == *space) {
                maps::guards(*pid, &mut memory.mappings, &guarded)?;
            }
        }
        self.look_at_objects(snapshot, numbers, sources)?;
        for source in sources {
            if let Source::Object { space, file, areas } = source
                && let Some(object) = self.object(*space)
            {
                remaining.push(Source::Object {
                    space: *space,
                    file: Arc::clone(file),
                    areas: object.todo(areas),
                });
            }
        }
        Ok(remaining)
    }

    /// In a frozen job that was looked at: what was written to shared memory.
    fn look_at_objects(
        &mut self,
        snapshot: &Snapshot,
        numbers: &SpaceNumbers,
        sources: &[Source],
    ) -> Result<(), CheckpointError> {
        let views = shared::views(snapshot);
        let lost = &mut self.lost;
        self.objects.retain(|_, object| {
            // Others may have their inodes by now.
            let known = views.contains_key(&object.number);
            if !known {
                lost.push((object.number, object.ledger.lose()));
            }
            known
        });
        let forked = self.forked(views.values().flatten().map(|view| view.0))?;
        for (&key, &number) in &numbers.objects {
            if let Some(views) = views.get(&number) {
                let object = self.objects.entry(key);
                let object = object.or_insert_with(|| shared::Object::new(number));
                let data = sources.iter().find_map(|source| match source {
                    Source::Object { space, areas, .. } if *space == number => Some(areas),
                    _ => None,
                });
                let data = data.map_or(&[][..], Vec::as_slice);
                object.look(views, data, &mut self.spaces, &forked)?;
            }
        }
        Ok(())
    }

    fn object(&self, number: u64) -> Option<&shared::Object> {
        self.objects.values().find(|object| object.number == number)
    }

    /// Whether `source` is read through [`Tracking::remaining`].
    pub(crate) fn tracks(&self, source: &Source) -> bool {
        match source {
            Source::Process { pid, space, .. } => {
                let found = self.spaces.get(pid);
                found.is_some_and(|found| found.number == *space)
            }
            Source::Object { space, .. } => self.object(*space).is_some(),
        }
    }

    /// In a frozen job: what the checkpoint keeps of its base, and of what was copied while the job ran.
    pub(crate) fn settle(&mut self, source: &Source) -> Result<Settled, CheckpointError> {
        let areas = match source {
            Source::Process { areas, .. } => areas,
            Source::Object { space, areas, .. } => {
                let settled = self.object(*space).map(|object| object.settle(areas));
                return Ok(settled.unwrap_or_default());
            }
        };
        let Some(space) = self.space_mut(source) else {
            return Ok(Settled::default());
        };
        let ranges = areas.iter().map(|(range, _)| range);
        let mut settled = space.ledger.settle(space.number, ranges);
        settled.vanished(&space.tracker.vanished(&settled.present)?);
        settled.missing(&space.missing);
        Ok(settled)
    }

    /// The checkpoint is on disk: from here on, what was written since it counts.
    pub(crate) fn committed(
        &mut self,
        base: Checkpoint,
        settled: Vec<Settled>,
        numbers: &SpaceNumbers,
    ) {
        self.last_number = numbers.last;
        self.base = Some(base);
        let mut settled: HashMap<u64, Settled> = settled
            .into_iter()
            .map(|settled| (settled.space, settled))
            .collect();
        let mut keep = |number: u64, ledger: &mut Ledger| {
            let settled = settled.remove(&number);
            settled.map(|settled| ledger.committed(settled.present))
        };
        self.objects
            .retain(|_, object| keep(object.number, &mut object.ledger).is_some());
        self.spaces
            .retain(|_, space| keep(space.number, &mut space.ledger).is_some());
    }
}
