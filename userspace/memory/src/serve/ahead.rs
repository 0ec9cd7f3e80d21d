//! What is likely to be wanted next: what comes after the last pages that were waited for, where somebody goes through memory in order.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

/// Pages of the image: its space, and the number there.
pub(crate) type Page = (u64, u64);

/// Those who go through memory at the same time.
const STREAMS: usize = 16;
/// Pages to read ahead when one is first recognised: 1 MiB.
const FIRST: u64 = 256;
/// Pages to read ahead at most: 32 MiB.
const MOST: u64 = 8192;
/// Of so many pages one is asked for; its block has the others.
const STEP: usize = 64;
/// Pages that are asked for at most.
const ASKED: usize = 1024;
/// Pages that are remembered, one of each block.
const REMEMBERED: usize = 1 << 16;

/// What the faults so far say.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// The latest first.
    streams: VecDeque<Stream>,
    asked: VecDeque<Page>,
    touched: Vec<Page>,
    seen: HashSet<Page>,
}

#[derive(Debug)]
struct Stream {
    space: u64,
    /// From behind the last fault's block up to where was read ahead.
    expected: Range<u64>,
    /// How far to read ahead the next time; 0: not recognised yet.
    window: u64,
}

impl Ahead {
    /// Somebody waits for a page of a block, which has pages in the range `block`.
    pub(crate) fn fault(&mut self, space: u64, page: u64, block: &Range<u64>) {
        if self.touched.len() < REMEMBERED && self.seen.insert((space, block.start)) {
            self.touched.push((space, block.start));
        }
        let follows = |stream: &Stream| {
            stream.space == space && (stream.expected.start..=stream.expected.end).contains(&page)
        };
        let Some(at) = self.streams.iter().position(follows) else {
            self.streams.truncate(STREAMS - 1);
            return self.streams.push_front(Stream {
                space,
                expected: block.end..block.end,
                window: 0,
            });
        };
        let Some(mut stream) = self.streams.remove(at) else {
            return;
        };
        stream.window = (2 * stream.window).clamp(FIRST, MOST);
        let from = stream.expected.end.max(block.end);
        stream.expected = block.end..block.end + stream.window;
        let pages = (from..stream.expected.end).step_by(STEP);
        self.asked.extend(pages.map(|page| (space, page)));
        let surplus = self.asked.len().saturating_sub(ASKED);
        self.asked.drain(..surplus);
        self.streams.push_front(stream);
    }

    /// What should be read now.
    pub(crate) fn next(&mut self) -> Option<Page> {
        self.asked.pop_front()
    }

    /// A page of each block that was waited for, in that order.
    pub(crate) fn touched(&self) -> &[Page] {
        &self.touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(ahead: &mut Ahead, page: u64) -> Vec<u64> {
        let block = page / 64 * 64;
        ahead.fault(1, page, &(block..block + 64));
        std::iter::from_fn(|| ahead.next())
            .map(|(_, page)| page)
            .collect()
    }

    #[test]
    fn who_reads_in_order_gets_more_and_more() {
        let mut ahead = Ahead::default();
        assert_eq!(fault(&mut ahead, 1000), []);
        // Others do not disturb it.
        assert_eq!(fault(&mut ahead, 50_000), []);
        assert_eq!(fault(&mut ahead, 1024), [1088, 1152, 1216, 1280]);
        // What was read ahead is not asked for again.
        assert_eq!(
            fault(&mut ahead, 1280),
            [1344, 1408, 1472, 1536, 1600, 1664, 1728, 1792]
        );
        let mut page = 1280;
        for _ in 0..20 {
            let asked = fault(&mut ahead, page + 64);
            page = asked.last().map_or(page + 64, |last| *last);
        }
        let last = fault(&mut ahead, page + 64).len();
        assert_eq!(last as u64, MOST / STEP as u64);
    }

    #[test]
    fn who_jumps_about_gets_nothing_but_is_remembered() {
        let mut ahead = Ahead::default();
        for nth in 0..100 {
            assert_eq!(fault(&mut ahead, nth * 7919 % 100 * 640 + 3), []);
        }
        assert_eq!(fault(&mut ahead, 5), []);
        assert_eq!(ahead.touched().len(), 100);
        assert_eq!(ahead.touched()[..2], [(1, 0), (1, 19 * 640)]);
    }

    #[test]
    fn a_stream_is_told_from_those_of_other_spaces() {
        let mut ahead = Ahead::default();
        ahead.fault(1, 0, &(0..64));
        ahead.fault(2, 64, &(64..128));
        assert_eq!(ahead.next(), None);
        ahead.fault(1, 64, &(64..128));
        assert_eq!(ahead.next(), Some((1, 128)));
    }
}
