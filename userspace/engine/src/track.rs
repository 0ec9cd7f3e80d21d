//! What is known of a job's memory between two checkpoints of it, so that the next one need only take what was written.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use images::proto::Snapshot;
use images::{Checkpoint, Job, PageSet, Writer};
use memory::track::{FEATURES, WriteProtect, WriteTracker, Written};
use memory::{PAGE_SIZE, SoftDirty, Tracking as Method, uffd};
use remote::{Program, sys};

use crate::capture::lend;
use crate::freeze::{self, Frozen, failed};
use crate::pages::{self, Copied, Source};
use crate::procfs::{self, Stat, Status};
use crate::{CheckpointError, Progress, RestoreError, Scope, areas, maps};

mod shared;

/// The state of a job's memory as of its newest checkpoint. Belongs to one job and is dropped with it; then nothing
/// of it is left in the job.
#[derive(Default)]
pub struct Tracking {
    /// The checkpoint that [`Space::present`] and [`Space::written`] speak of.
    base: Option<Checkpoint>,
    /// Watched processes, by pid.
    spaces: BTreeMap<u32, Space>,
    /// Shared memory that is followed, by what the kernel knows it by.
    objects: HashMap<shared::Key, shared::Object>,
    /// The last number given to a space.
    last_number: u64,
    /// See [`Tracking::lost`].
    lost: Vec<(u64, PageSet)>,
}

/// One watched address space.
struct Space {
    number: u64,
    /// When its process was started: a pid alone may mean another one.
    born: i64,
    tracker: Box<dyn WriteTracker>,
    /// Pages that the base has, as content or as zeros.
    present: PageSet,
    /// What was written since the base. Lives on when a checkpoint fails.
    written: Written,
    /// Of these, what this checkpoint has not copied yet.
    todo: Written,
    /// Pages that this checkpoint has copied and that were not written since.
    copied: PageSet,
    /// Pages that this checkpoint has ever copied.
    put: PageSet,
    /// The mappings when they were last asked for.
    areas: Vec<Area>,
    /// Nothing of it is copied while it runs, this time.
    late: bool,
    /// It was written faster than it was copied, so for so many checkpoints nobody tries again.
    hot: u32,
}

type Area = (Range<u64>, memory::Kind);

/// Numbers of page spaces while a job is captured. Those of watched processes stay the same from checkpoint to checkpoint; no other
/// number is ever used twice.
#[derive(Debug, Default, Clone)]
pub(crate) struct SpaceNumbers {
    watched: HashMap<u32, u64>,
    /// Of shared memory, known before or met now.
    objects: HashMap<shared::Key, u64>,
    pub(crate) last: u64,
}

impl SpaceNumbers {
    pub(crate) fn of(&mut self, pid: u32) -> u64 {
        match self.watched.get(&pid) {
            Some(&number) => number,
            None => self.fresh(),
        }
    }

    pub(crate) fn of_object(&mut self, key: shared::Key) -> u64 {
        if let Some(&number) = self.objects.get(&key) {
            return number;
        }
        let number = self.fresh();
        self.objects.insert(key, number);
        number
    }

    pub(crate) fn is_watched(&self, pid: u32) -> bool {
        self.watched.contains_key(&pid)
    }

    pub(crate) fn fresh(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// So few pages are left to the freeze without another round: less than 1 ms of copying.
const FEW_PAGES: u64 = 256;
/// More rounds bring nothing that a short freeze does not.
const ROUNDS: usize = 12;
/// Checkpoints for which a space that was written faster than it was copied is copied late.
const TRY_AGAIN: u32 = 5;

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

    /// Watches a stopped process whose memory has just been filled with the pages `present` of space `number`.
    pub(crate) fn adopt(
        &mut self,
        pid: u32,
        number: u64,
        mut tracker: Box<dyn WriteTracker>,
        present: PageSet,
    ) -> Result<(), RestoreError> {
        let doing = || format!("watching process {pid}");
        let born = Stat::read(pid).map_err(|source| RestoreError::System {
            doing: doing(),
            source,
        })?;
        let areas = areas::private(pid).map_err(|error| RestoreError::System {
            doing: doing(),
            source: std::io::Error::other(error),
        })?;
        let covered = areas.into_iter().filter(|(_, kind)| tracker.covers(*kind));
        let ranges: Vec<_> = covered.map(|(range, _)| range).collect();
        // All that is there was just put there.
        tracker.collect(&ranges, false, &mut Written::default())?;
        let space = Space {
            present,
            ..Space::new(number, born.field(22), tracker)
        };
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
        object.look(&views, &data, &mut self.spaces)?;
        object.committed(present);
        self.objects.insert(key, object);
        Ok(())
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
            self.base = None;
            for space in self.spaces.values_mut() {
                space.present.clear();
                space.written.whole = vec![0..u64::MAX / PAGE_SIZE * PAGE_SIZE];
            }
            self.objects
                .values_mut()
                .for_each(shared::Object::forget_base);
        }
        let members = freeze::members(scope);
        let born = |pid: u32| Stat::read(pid).map(|stat| stat.field(22)).ok();
        self.spaces
            .retain(|pid, space| members.contains(pid) && born(*pid) == Some(space.born));
        for pid in members {
            if self.spaces.contains_key(&pid) {
                continue;
            }
            let Some(born) = born(pid) else { continue };
            match watch(pid) {
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
            space.todo = space.written.clone();
            space.copied.clear();
            space.put.clear();
            space.areas.clear();
            space.hot = space.hot.saturating_sub(1);
            space.late = space.hot > 0 || writes_directly(*pid);
        }
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
            let live = |space: &Space| !space.late && (round == 0 || !space.tracker.needs_stop());
            let stops = |space: &Space| live(space) && space.tracker.needs_stop();
            let frozen = if self.spaces.values().any(stops) {
                let frozen = Frozen::freeze(scope)?;
                if self.shares_memory() {
                    return Ok(());
                }
                Some(frozen)
            } else {
                None
            };
            let mut pages = 0;
            let lost = &mut self.lost;
            self.spaces.retain(|&pid, space| {
                if !live(space) {
                    return true;
                }
                let watched = space.look(pid).is_ok();
                let left = space.left(pid);
                if round == 1 && left > space.copied.len() / 2 && left > FEW_PAGES {
                    space.hot = TRY_AGAIN;
                }
                pages += left;
                watched || space.lose(lost)
            });
            drop(frozen);
            let little = pages <= FEW_PAGES || pages > before / 10 * 7;
            if round > 0 && little {
                break;
            }
            before = pages;
            if round > 0 {
                writer.next_round();
            }
            let spaces = self.spaces.iter().filter(|(_, space)| live(space));
            let sources = spaces
                .map(|(&pid, space)| space.source(pid, &space.areas, true))
                .collect::<Vec<_>>();
            let copied = pages::dump(writer, &sources, threads, progress)?;
            for (source, Copied { pages, gone }) in sources.iter().zip(copied) {
                if let Some(space) = self.space_mut(source) {
                    space.todo.subtract_from(&mut space.copied);
                    space.copied |= &pages;
                    space.put |= pages;
                    space.todo = Written {
                        pages: gone,
                        ..Written::default()
                    };
                }
            }
        }
        Ok(())
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
            last: self.last_number,
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

    /// In a frozen job: drops the address spaces that an exec has replaced.
    pub(crate) fn drop_replaced(&mut self) {
        let lost = &mut self.lost;
        self.spaces.retain(|_, space| {
            space
                .tracker
                .collect(&[], false, &mut space.written)
                .is_ok()
                || space.lose(lost)
        });
    }

    /// Spaces that were copied and then gone, with what was copied of them.
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
        let views = shared::views(snapshot);
        // Others may have their inodes by now.
        let known = |object: &shared::Object| views.contains_key(&object.number);
        self.objects.retain(|_, object| known(object));
        for (&key, &number) in &numbers.objects {
            if let Some(views) = views.get(&number) {
                let object = self.objects.entry(key);
                let object = object.or_insert_with(|| shared::Object::new(number));
                let data = sources.iter().find_map(|source| match source {
                    Source::Object { space, areas, .. } if *space == number => Some(areas),
                    _ => None,
                });
                object.look(views, data.map_or(&[], Vec::as_slice), &mut self.spaces)?;
            }
        }
        for source in sources {
            match source {
                Source::Process {
                    pid, areas, space, ..
                } => {
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
                Source::Object { space, file, areas } => {
                    if let Some(object) = self.object(*space) {
                        remaining.push(Source::Object {
                            space: *space,
                            file: Arc::clone(file),
                            areas: object.todo(areas),
                        });
                    }
                }
            }
        }
        Ok(remaining)
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
        let mut kept = space.present.clone();
        space.written.subtract_from(&mut kept);
        keep_inside(&mut kept, areas);
        let mut copied = space.copied.clone();
        space.todo.subtract_from(&mut copied);
        keep_inside(&mut copied, areas);
        let vanished = space.tracker.vanished(&(&kept | &copied))?;
        kept -= &vanished;
        copied -= &vanished;
        Ok(Settled {
            space: space.number,
            forgotten: &space.put - &copied,
            present: &kept | &copied,
            kept,
        })
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
        self.objects
            .retain(|_, object| match settled.remove(&object.number) {
                Some(settled) => {
                    object.committed(settled.present);
                    true
                }
                None => false,
            });
        self.spaces
            .retain(|_, space| match settled.remove(&space.number) {
                Some(settled) => {
                    space.present = settled.present;
                    space.written = Written::default();
                    true
                }
                None => false,
            });
    }
}

/// The pages of one space in a checkpoint that is about to be committed.
#[derive(Default)]
pub(crate) struct Settled {
    pub(crate) space: u64,
    /// All of them.
    present: PageSet,
    /// Those that lie where the base has them.
    pub(crate) kept: PageSet,
    /// Copied, and gone or written since.
    pub(crate) forgotten: PageSet,
}

impl Settled {
    /// These were read last of all.
    pub(crate) fn found(&mut self, pages: &PageSet) {
        self.forgotten -= pages;
        self.present |= pages;
    }
}

impl Space {
    fn new(number: u64, born: i64, tracker: Box<dyn WriteTracker>) -> Self {
        Self {
            number,
            born,
            tracker,
            present: PageSet::new(),
            written: Written::default(),
            todo: Written::default(),
            copied: PageSet::new(),
            put: PageSet::new(),
            areas: Vec::new(),
            late: false,
            hot: 0,
        }
    }

    /// It is no more; says that it is not to be kept.
    fn lose(&mut self, lost: &mut Vec<(u64, PageSet)>) -> bool {
        lost.push((self.number, std::mem::take(&mut self.put)));
        false
    }

    /// Looks which pages of a running process were written.
    fn look(&mut self, pid: u32) -> Result<(), CheckpointError> {
        let mut areas = areas::private(pid)?;
        areas.retain(|(_, kind)| self.tracker.covers(*kind));
        let done = self.collect(&areas);
        self.areas = areas;
        done.map(drop)
    }

    /// The same once it is stopped, with mappings that are known exactly. Gives where guard pages may be.
    fn look_at(&mut self, areas: &[Area]) -> Result<Vec<Range<u64>>, CheckpointError> {
        let mut guarded = self.collect(areas)?;
        let uncovered = areas.iter().filter(|(_, kind)| !self.tracker.covers(*kind));
        guarded.extend(uncovered.map(|(range, _)| range.clone()));
        guarded.sort_unstable_by_key(|range| range.start);
        // What is not watched, and what was taken for something else while it ran.
        let unseen = |(range, kind): &Area| match (self.tracker.covers(*kind), self.late) {
            (true, true) => Vec::new(),
            (true, false) => not_among(range, *kind, &self.areas),
            (false, _) => vec![range.clone()],
        };
        let mistaken = Written {
            whole: areas.iter().flat_map(unseen).collect(),
            ..Written::default()
        };
        self.written.add(&mistaken);
        self.todo.add(&mistaken);
        Ok(guarded)
    }

    /// Looks what was written in those of `areas` that are watched. Gives where guard pages may be.
    fn collect(&mut self, areas: &[Area]) -> Result<Vec<Range<u64>>, CheckpointError> {
        let covered = areas.iter().filter(|(_, kind)| self.tracker.covers(*kind));
        let ranges: Vec<_> = covered.map(|(range, _)| range.clone()).collect();
        let mut news = Written::default();
        let result = self.tracker.collect(&ranges, false, &mut news);
        self.written.add(&news);
        self.todo.add(&news);
        result?;
        Ok(self.tracker.guarded(&ranges, &news))
    }

    /// About how many pages are to be copied.
    fn left(&self, pid: u32) -> u64 {
        let whole: u64 = self
            .todo
            .whole
            .iter()
            .map(|r| (r.end - r.start) / PAGE_SIZE)
            .sum();
        self.todo.pages.len() + whole.min(procfs::resident(pid))
    }

    /// What is to be copied of `areas`.
    fn source(&self, pid: u32, areas: &[Area], runs: bool) -> Source {
        let todo = areas.iter().flat_map(|(range, kind)| {
            let runs = self.todo.runs(range);
            runs.into_iter().map(|run| (run, *kind))
        });
        Source::Process {
            space: self.number,
            pid,
            areas: todo.collect(),
            runs,
        }
    }
}

/// The parts of `range` that lie in no area of that kind.
fn not_among(range: &Range<u64>, kind: memory::Kind, areas: &[Area]) -> Vec<Range<u64>> {
    let first = areas.partition_point(|(area, _)| area.end <= range.start);
    let near = areas[first..]
        .iter()
        .take_while(|(area, _)| area.start < range.end);
    let mut parts = Vec::new();
    let mut at = range.start;
    for (area, _) in near.filter(|(_, known)| *known == kind) {
        parts.push(at..area.start.max(at));
        at = area.end;
    }
    parts.push(at..range.end.max(at));
    parts.retain(|part| !part.is_empty());
    parts
}

/// Removes the pages that lie in none of `areas`.
fn keep_inside(pages: &mut PageSet, areas: &[Area]) {
    let mut at = 0;
    for (range, _) in areas {
        pages.remove_range(at..range.start / PAGE_SIZE);
        at = range.end / PAGE_SIZE;
    }
    pages.remove_range(at..);
}

/// Watches a running process.
fn watch(pid: u32) -> Result<Box<dyn WriteTracker>, CheckpointError> {
    Ok(match by_userfaultfd() {
        true => Box::new(WriteProtect::new(pid, take_userfaultfd(pid)?)),
        false => Box::new(SoftDirty::new(pid)),
    })
}

/// Whether processes are watched through userfaultfds of theirs.
pub(crate) fn by_userfaultfd() -> bool {
    *memory::tracking() == Method::WriteProtect
}

/// Gives a running process a userfaultfd for write tracking, and takes it out of its descriptors again. Only its leader stops
/// for it, for about a millisecond.
fn take_userfaultfd(pid: u32) -> Result<OwnedFd, CheckpointError> {
    let status = Status::read(pid).map_err(failed(format!("reading /proc/{pid}/status")))?;
    if status.state() == 'Z' {
        return Err(CheckpointError::Gone { pid });
    }
    let mut frozen = Frozen::leader(pid)?;
    let process = (frozen.processes.get_mut(&pid)).ok_or(CheckpointError::Gone { pid })?;
    let frame = lend(process, &status)?
        .first()
        .map_or(0, |lending| lending.slot.frame);
    // As rt_sigreturn, should it come to that, sets the alternate stack that is in the frame.
    let mut keep = Program::new();
    keep.must(
        libc::SYS_sigaltstack,
        &[0.into(), (frame + remote::live::FRAME_ALTSTACK).into()],
        "keep the alternate stack",
    );
    frozen.run(pid, &keep)?;
    let (program, made) = userfaultfd();
    let fd = frozen.run(pid, &program)?.results[made] as u32;
    let pidfd = sys::pidfd_open(pid as i32).map_err(failed(format!("opening process {pid}")))?;
    let taken = sys::pidfd_getfd(&pidfd, fd);
    let mut program = Program::new();
    program.must(libc::SYS_close, &[fd.into()], "close the userfaultfd");
    frozen.run(pid, &program)?;
    taken.map_err(failed(format!("taking the userfaultfd of process {pid}")))
}

/// Makes a userfaultfd for write tracking; and which of the calls gives it.
pub(crate) fn userfaultfd() -> (Program, usize) {
    let mut program = Program::new();
    // Which needs no right of the process: no fault of the kernel's ever waits for it, as written pages lose their protection by themselves.
    let flags = (uffd::FLAGS | uffd::USER_MODE_ONLY).into();
    let made = program.must(libc::SYS_userfaultfd, &[flags], "make a userfaultfd");
    let api = program.words(&[uffd::API, FEATURES, 0]);
    program.must(
        libc::SYS_ioctl,
        &[
            remote::Arg::Result(made),
            uffd::UFFDIO_API.into(),
            api.into(),
        ],
        "agree on its features",
    );
    (program, made)
}

/// Whether a descriptor of the process is open for direct I/O: then a device may be writing to pages that were pinned
/// before they were write-protected, which leaves no trace, and what is copied while that goes on is not to be trusted. Once the
/// process is stopped, no read(2) is under way.
fn writes_directly(pid: u32) -> bool {
    procfs::numbered(&format!("/proc/{pid}/fd"))
        .into_iter()
        .any(|fd| {
            let info =
                std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
            flags.unwrap_or(0) & libc::O_DIRECT != 0
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::Kind::{Anonymous, PrivateFile};

    #[test]
    fn what_was_not_seen_as_that_kind_is_told() {
        let areas = [
            (0x1000..0x3000, Anonymous),
            (0x3000..0x4000, PrivateFile),
            (0x8000..0x9000, Anonymous),
        ];
        let parts = |range, kind| not_among(&range, kind, &areas);
        assert_eq!(parts(0x1000..0x3000, Anonymous), []);
        assert_eq!(parts(0x2000..0x4000, Anonymous), [0x3000..0x4000]);
        assert_eq!(
            parts(0x0..0xa000, Anonymous),
            [0x0..0x1000, 0x3000..0x8000, 0x9000..0xa000]
        );
        assert_eq!(parts(0x5000..0x6000, Anonymous), [0x5000..0x6000]);
        assert_eq!(parts(0x8000..0x9000, PrivateFile), [0x8000..0x9000]);
    }
}
