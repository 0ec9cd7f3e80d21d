//! Which page of the image belongs where in an address space, as the job moves and discards its memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::track::page_runs;
use crate::uffd::Message;
use crate::{PAGE_SIZE, PageSet};

/// Where pages that may still be missing belong. What it does not have is zero: fresh, discarded or foreign memory.
///
/// Pieces never span two mappings of the checkpoint, so that one request to the kernel can fill a run of one piece.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Layout {
    /// By address.
    pieces: BTreeMap<u64, Piece>,
    /// Starts of the pieces that are not where they were at the checkpoint.
    moved: BTreeSet<u64>,
    /// Pages to which memory was ever moved.
    arrived: PageSet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    end: u64,
    /// The address its first byte had at the checkpoint.
    origin: u64,
    /// Children get zeros (MADV_WIPEONFORK).
    wipe: bool,
}

impl Layout {
    /// Adds a mapping of the checkpoint, where it was then.
    pub(crate) fn add(&mut self, range: &Range<u64>, wipe: bool) {
        let (end, origin) = (range.end, range.start);
        self.pieces.insert(range.start, Piece { end, origin, wipe });
    }

    /// The address that the content of `address` had at the checkpoint.
    pub(crate) fn origin(&self, address: u64) -> Option<u64> {
        let (start, piece) = self.pieces.range(..=address).next_back()?;
        (address < piece.end).then(|| piece.origin + (address - start))
    }

    /// Where content that lay in `origin` at the checkpoint belongs now: address ranges, each with the origin of its start.
    pub(crate) fn places(&self, origin: &Range<u64>) -> Vec<(Range<u64>, u64)> {
        let first = self.pieces.range(..=origin.start).next_back();
        let first = first.map_or(origin.start, |(start, _)| *start);
        let unmoved = self.pieces.range(first..origin.end);
        let unmoved = unmoved.filter(|(start, piece)| **start == piece.origin);
        let moved = self.moved.iter().map(|start| (start, &self.pieces[start]));
        let cut = |(start, piece): (&u64, &Piece)| {
            let from = origin.start.max(piece.origin);
            let to = origin.end.min(piece.origin + (piece.end - start));
            (from < to).then(|| {
                let at = start + (from - piece.origin);
                (at..at + (to - from), from)
            })
        };
        unmoved.chain(moved).filter_map(cut).collect()
    }

    /// Where everything that may still be missing is as it was at the checkpoint, by address; nothing that was there has been discarded since.
    pub(crate) fn unmoved(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let pieces = self.pieces.iter();
        let unmoved = pieces.filter(|(start, piece)| **start == piece.origin);
        unmoved.map(|(start, piece)| *start..piece.end)
    }

    /// Whether something that may be missing belongs elsewhere now.
    pub(crate) fn has_moved(&self) -> bool {
        !self.moved.is_empty()
    }

    /// Where memory was moved to since the checkpoint, by address. It takes its write protection along: mremap_userfaultfd_prep() in
    /// mm/userfaultfd.c leaves it registered if its userfaultfd tells of moves.
    pub(crate) fn arrived(&self) -> Vec<Range<u64>> {
        page_runs(&self.arrived, &(0..u64::MAX))
    }

    /// What a child gets.
    pub(crate) fn child(&self) -> Self {
        let mut child = self.clone();
        child.pieces.retain(|_, piece| !piece.wipe);
        child.moved.retain(|start| child.pieces.contains_key(start));
        child
    }

    /// Does what the kernel says that the job did.
    pub(crate) fn apply(&mut self, message: &Message) {
        match message {
            Message::Remove(range) | Message::Unmap(range) => drop(self.take(range)),
            Message::Remap { from, to, length } => {
                let moved = self.take(&(*from..from + length));
                drop(self.take(&(*to..to + length)));
                let pages = to / PAGE_SIZE..(to + length) / PAGE_SIZE;
                self.arrived.insert_range(pages);
                for (start, piece) in moved {
                    let shifted = Piece {
                        end: piece.end - from + to,
                        ..piece
                    };
                    self.insert(start - from + to, shifted);
                }
            }
            Message::Fault { .. } | Message::Fork(_) => {}
        }
    }

    fn insert(&mut self, start: u64, piece: Piece) {
        self.pieces.insert(start, piece);
        if piece.origin != start {
            self.moved.insert(start);
        }
    }

    /// Takes out what lies in `range`, splitting pieces at its ends.
    fn take(&mut self, range: &Range<u64>) -> Vec<(u64, Piece)> {
        let first = self.pieces.range(..range.start).next_back();
        let first = first.map_or(range.start, |(start, _)| *start);
        let hit = self.pieces.range(first..range.end);
        let hit: Vec<(u64, Piece)> = hit
            .filter(|(_, piece)| piece.end > range.start)
            .map(|(start, piece)| (*start, *piece))
            .collect();
        let mut taken = Vec::with_capacity(hit.len());
        for (start, piece) in hit {
            self.pieces.remove(&start);
            self.moved.remove(&start);
            let part = |from: u64, to: u64| Piece {
                end: to,
                origin: piece.origin + (from - start),
                ..piece
            };
            if start < range.start {
                self.insert(start, part(start, range.start));
            }
            if piece.end > range.end {
                self.insert(range.end, part(range.end, piece.end));
            }
            let (from, to) = (start.max(range.start), piece.end.min(range.end));
            taken.push((from, part(from, to)));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(ranges: &[Range<u64>]) -> Layout {
        let mut layout = Layout::default();
        ranges.iter().for_each(|range| layout.add(range, false));
        layout
    }

    fn remap(from: u64, to: u64, length: u64) -> Message {
        Message::Remap { from, to, length }
    }

    #[test]
    fn discarded_pages_come_from_nowhere() {
        let mut layout = layout(&[10..20, 20..30]);
        layout.apply(&Message::Remove(15..25));
        assert_eq!(layout.origin(14), Some(14));
        assert_eq!(layout.origin(15), None);
        assert_eq!(layout.origin(24), None);
        assert_eq!(layout.origin(25), Some(25));
        assert_eq!(layout.places(&(0..99)), [(10..15, 10), (25..30, 25)]);
    }

    #[test]
    fn moved_pages_come_from_their_old_place() {
        let mut layout = layout(&[10..20]);
        layout.apply(&remap(12, 40, 6));
        assert_eq!(layout.origin(12), None);
        assert_eq!(layout.origin(43), Some(15));
        assert_eq!(layout.places(&(13..19)), [(18..19, 18), (41..46, 13)]);
        assert!(layout.has_moved() && layout.unmoved().eq([10..12, 18..20]));
        // And back again, over what was there.
        layout.apply(&remap(40, 14, 6));
        assert_eq!(layout.origin(14), Some(12));
        assert_eq!(layout.origin(40), None);
        assert_eq!(layout.places(&(10..20)), [(10..12, 10), (14..20, 12)]);
    }

    #[test]
    fn a_page_moved_over_another_replaces_it() {
        let mut layout = layout(&[10..20, 50..60]);
        layout.apply(&remap(10, 52, 4));
        assert_eq!(layout.origin(53), Some(11));
        assert_eq!(layout.places(&(52..56)), []);
        assert_eq!(layout.places(&(51..57)), [(51..52, 51), (56..57, 56)]);
    }

    #[test]
    fn where_memory_has_arrived_is_kept_in_mind() {
        let page = |nth: u64| nth * PAGE_SIZE;
        let mut layout = layout(&[page(10)..page(20)]);
        layout.apply(&remap(page(12), page(40), page(6)));
        layout.apply(&remap(page(40), page(12), page(2)));
        layout.apply(&Message::Remove(page(40)..page(46)));
        assert_eq!(layout.arrived(), [page(12)..page(14), page(40)..page(46)]);
    }

    #[test]
    fn children_lack_what_is_wiped() {
        let mut layout = layout(&[10..20]);
        layout.add(&(30..40), true);
        layout.apply(&remap(30, 60, 4));
        let child = layout.child();
        assert_eq!((child.origin(10), child.origin(35)), (Some(10), None));
        assert_eq!((child.origin(61), layout.origin(61)), (None, Some(31)));
        assert_eq!(child.places(&(0..99)), [(10..20, 10)]);
    }

    /// Against a map of every single page.
    #[test]
    fn agrees_with_the_plain_way() {
        let mut state = 1u64;
        let mut random = |limit: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % limit
        };
        for _ in 0..200 {
            let mut layout = layout(&[0..30, 30..50, 60..90]);
            let mut plain: BTreeMap<u64, u64> = (0..90)
                .filter(|at| !(50..60).contains(at))
                .map(|at| (at, at))
                .collect();
            for _ in 0..20 {
                let (from, length) = (random(90), 1 + random(20));
                let message = if random(2) == 0 {
                    Message::Unmap(from..from + length)
                } else {
                    remap(from, from + length + random(40), length)
                };
                layout.apply(&message);
                let mut taken = |range: Range<u64>| -> Vec<(u64, u64)> {
                    range
                        .filter_map(|at| Some((at, plain.remove(&at)?)))
                        .collect()
                };
                match message {
                    Message::Remap { from, to, length } => {
                        let moved = taken(from..from + length);
                        drop(taken(to..to + length));
                        plain.extend(moved.iter().map(|(at, origin)| (at - from + to, *origin)));
                    }
                    _ => drop(taken(from..from + length)),
                }
                for at in 0..200 {
                    assert_eq!(layout.origin(at), plain.get(&at).copied(), "{at}");
                }
                let from = random(90);
                let to = from + random(30);
                let mut found: Vec<(u64, u64)> = layout
                    .places(&(from..to))
                    .into_iter()
                    .flat_map(|(at, origin)| at.clone().zip(origin..))
                    .collect();
                found.sort_unstable();
                let within = plain
                    .iter()
                    .filter(|(_, origin)| (from..to).contains(origin));
                let wanted: Vec<(u64, u64)> = within.map(|(at, origin)| (*at, *origin)).collect();
                assert_eq!(found, wanted);
            }
        }
    }
}
