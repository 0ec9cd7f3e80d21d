//! The private memory of one watched process.

use std::ops::Range;

use images::PageSet;
use memory::Unshared;
use memory::track::{WriteTracker, Written};
use memory::uffd::Userfault;

use super::ledger::Ledger;
use super::watch::writes_directly;
use crate::pages::Source;
use crate::{CheckpointError, areas};

/// A mapping, or a part of it, and what it is of.
pub(super) type Area = (Range<u64>, memory::Kind);

/// One watched address space.
pub(super) struct Space {
    pub(super) number: u64,
    /// When its process was started: a pid alone may mean another one.
    pub(super) born: i64,
    pub(super) tracker: Box<dyn WriteTracker>,
    pub(super) ledger: Ledger,
    /// The mappings when they were last asked for.
    pub(super) areas: Vec<Area>,
    /// Those of shared anonymous memory.
    pub(super) shared: Vec<areas::Area>,
    /// Nothing of it is copied while it runs, this time.
    late: bool,
    /// Since when it may do direct I/O, nothing of it is copied while it runs.
    direct: bool,
    /// It was written faster than it was copied, so for so many checkpoints nobody tries again.
    hot: u32,
    /// See [`Space::may_have_forked`].
    unshared: Option<Unshared>,
    /// The userfaultfd of its lazy restore, while memory of it may be missing.
    pub(super) lazy: Option<Userfault>,
    /// Pages of the base that had yet to come in when the job stood still.
    pub(super) missing: PageSet,
}

/// Checkpoints for which a space that was written faster than it was copied is copied late.
const TRY_AGAIN: u32 = 5;

impl Space {
    pub(super) fn new(number: u64, born: i64, tracker: Box<dyn WriteTracker>) -> Self {
        let mut ledger = Ledger::default();
        // A child may have inherited pages that are protected.
        ledger.doubt();
        Self {
            number,
            born,
            tracker,
            ledger,
            areas: Vec::new(),
            shared: Vec::new(),
            late: false,
            direct: false,
            hot: 0,
            unshared: None,
            lazy: None,
            missing: PageSet::new(),
        }
    }

    /// A checkpoint begins.
    pub(super) fn begin(&mut self, pid: u32) {
        self.ledger.begin();
        self.areas.clear();
        self.shared.clear();
        self.hot = self.hot.saturating_sub(1);
        self.direct = writes_directly(pid);
        self.late = self.hot > 0 || self.direct;
    }

    /// Whether it is copied while it runs.
    pub(super) fn is_live(&self) -> bool {
        !self.late && !self.direct
    }

    /// It is written faster than it is copied.
    pub(super) fn outran(&mut self) {
        self.hot = TRY_AGAIN;
    }

    /// Between a look and the copy: whether direct I/O was under way at the look. What was found is copied in the freeze then.
    pub(super) fn check_direct(&mut self, pid: u32) -> bool {
        self.direct |= !self.tracker.needs_stop() && writes_directly(pid);
        self.direct
    }

    /// It is no more; says that it is not to be kept.
    pub(super) fn lose(&mut self, lost: &mut Vec<(u64, PageSet)>) -> bool {
        lost.push((self.number, self.ledger.lose()));
        false
    }

    /// Looks which pages of a running process were written.
    pub(super) fn look(&mut self, pid: u32) -> Result<(), CheckpointError> {
        let all = areas::running(pid)?;
        let mut areas = areas::private(&all);
        areas.retain(|(_, kind)| self.tracker.covers(*kind));
        let done = self.collect(&areas);
        self.areas = areas;
        self.shared = all;
        self.shared.retain(areas::Area::is_shared_anonymous);
        done.map(drop)
    }

    /// The same once it is stopped, with mappings that are known exactly. Gives where guard pages may be.
    pub(super) fn look_at(&mut self, areas: &[Area]) -> Result<Vec<Range<u64>>, CheckpointError> {
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
        self.ledger.note(&mistaken);
        self.areas = areas.to_vec();
        Ok(guarded)
    }

    /// Looks what was written in those of `areas` that are watched. Gives where guard pages may be.
    pub(super) fn collect(&mut self, areas: &[Area]) -> Result<Vec<Range<u64>>, CheckpointError> {
        let ranges = self.covered(areas);
        let mut news = Written::default();
        let result = self.tracker.collect(&ranges, false, &mut news);
        self.ledger.forget_empty();
        self.ledger.note(&news);
        if let Some(unshared) = &mut self.unshared {
            unshared.forget(&news);
        }
        result?;
        Ok(self.tracker.guarded(&ranges, &news))
    }

    fn covered(&self, areas: &[Area]) -> Vec<Range<u64>> {
        let covered = areas.iter().filter(|(_, kind)| self.tracker.covers(*kind));
        covered.map(|(range, _)| range.clone()).collect()
    }

    /// Whether it may have forked since this was asked last: a child that has ended may have written to memory they shared. Asked after a look.
    pub(super) fn may_have_forked(&mut self, pid: u32) -> Result<bool, memory::Error> {
        let chosen = Unshared::choose(pid, &self.covered(&self.areas))?;
        match self.unshared.replace(chosen) {
            Some(unshared) => Ok(!unshared.still()?),
            None => Ok(true),
        }
    }

    /// What is to be copied of `areas`.
    pub(super) fn source(&self, pid: u32, areas: &[Area], runs: bool) -> Source {
        let todo = areas.iter().flat_map(|(range, kind)| {
            let runs = self.ledger.todo(range);
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
