//! Bringing in what nobody has asked for yet.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::frames::Asked;
use super::space::{Content, Space};
use super::{PageSource, Server, lock};

/// Blocks that are read at the same time.
const READERS: usize = 2;

/// How long who waits is let go first, at most.
const FIRST: Duration = Duration::from_millis(2);
/// Who has waited for storage for so long will probably wait again: what nobody wants is left alone for twice as long as that took.
const SLOW: Duration = Duration::from_micros(500);
/// But for at most so many times as long, so that it comes in one day.
const MOST: u32 = 10;
/// Storage that has hung is not taken for slow.
const LONGEST: Duration = Duration::from_millis(50);

/// All blocks of some spaces, those that will be wanted first before the others; they come twice. With each, whether it will be wanted.
fn in_order<'a, S: PageSource>(
    source: &'a S,
    spaces: &'a BTreeSet<u64>,
) -> impl Iterator<Item = (u64, S::Block, bool)> + Send + 'a {
    let first = source.first().into_iter();
    let first = first.filter(|(space, _)| spaces.contains(space));
    let first = first.filter_map(|(space, page)| Some((space, source.locate(space, page)?, true)));
    let all = |space: &'a u64| source.blocks(*space).map(|block| (*space, block, false));
    first.chain(spaces.iter().flat_map(all))
}

impl<S: PageSource> Server<S> {
    pub(super) fn start_background(self: &Arc<Self>) -> io::Result<()> {
        let server = Arc::clone(self);
        let builder = std::thread::Builder::new().name("background".into());
        builder.spawn(move || server.bring_in())?;
        Ok(())
    }

    /// Brings in everything, and says when it is there.
    fn bring_in(self: &Arc<Self>) {
        // Children are forked all the while, and blocks passed over that others were reading.
        while self.pass() {}
        *lock(&self.over.0) = true;
        self.over.1.notify_all();
    }

    /// Goes through all blocks once; false when all were in already.
    fn pass(self: &Arc<Self>) -> bool {
        let images: BTreeSet<u64> = self.alive().iter().map(|space| space.image).collect();
        let rest = Mutex::new(in_order(&self.source, &images));
        let next = || {
            let asked = lock(&self.ahead).next();
            match asked {
                Some((image, page)) => Some((image, self.source.locate(image, page), true)),
                None => lock(&rest)
                    .next()
                    .map(|(image, block, wanted)| (image, Some(block), wanted)),
            }
        };
        let work = || {
            let mut any = false;
            while let Some((image, block, wanted)) = next() {
                any |= block.is_some_and(|block| self.bring(image, &block, wanted));
            }
            any
        };
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(work)).collect();
            let ended = readers
                .into_iter()
                .map(|reader| reader.join().unwrap_or(false));
            ended.fold(false, |any, more| any | more)
        })
    }

    fn alive(&self) -> Vec<Arc<Space>> {
        let spaces = lock(&self.spaces);
        let alive = spaces.values().filter(|space| !space.is_gone());
        alive.cloned().collect()
    }

    /// Brings a block into each space that lacks it; false when there is none.
    fn bring(self: &Arc<Self>, image: u64, block: &S::Block, wanted: bool) -> bool {
        let key = S::key(block);
        let mut lacking = self.alive();
        lacking.retain(|space| space.image == image && !space.done().blocks.contains(&key));
        if lacking.is_empty() {
            return false;
        }
        self.give_way(wanted);
        let data = match self.frames.ask(key, || None) {
            // Whoever reads it does so for one space only; the next pass looks again.
            Asked::Joined => {
                std::thread::sleep(Duration::from_micros(100));
                return true;
            }
            Asked::Here(data) => Some(data),
            Asked::Read(buffer) => {
                let data = self.read(block, buffer).map(Arc::new);
                for waiter in self.frames.finish(key, data.as_ref()) {
                    self.give(block, data.as_ref(), Some(waiter));
                }
                data
            }
        };
        let content = data
            .as_ref()
            .map_or(Content::Poison, |data| Content::Bytes(data));
        for space in &lacking {
            self.put_all(space, block, content);
        }
        self.serve_deferred();
        true
    }

    /// Those who wait come first, and before what nobody wants those who will soon wait again: they share one way to storage.
    fn give_way(&self, wanted: bool) {
        let begun = Instant::now();
        loop {
            let (took, ago) = self.statistics.last();
            let took = took.min(LONGEST);
            let stays = !wanted && took >= SLOW;
            let most = if stays { took * MOST } else { FIRST };
            let busy = self.idle.load(Ordering::Relaxed) < super::WORKERS;
            if !(busy || stays && ago < 2 * took) || begun.elapsed() >= most.max(FIRST) {
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Unreadable;

    /// Space `n` has `10 * n` pages, in blocks of ten.
    struct Source;

    impl PageSource for Source {
        type Block = Vec<u64>;

        fn locate(&self, space: u64, page: u64) -> Option<Vec<u64>> {
            let first = page / 10 * 10;
            (page < 10 * space).then(|| (first..first + 10).collect())
        }

        fn first(&self) -> Vec<(u64, u64)> {
            vec![(2, 15), (7, 1), (2, 99), (1, 3)]
        }

        fn blocks(&self, space: u64) -> Box<dyn Iterator<Item = Vec<u64>> + Send + '_> {
            Box::new((0..space).filter_map(move |nth| self.locate(space, 10 * nth)))
        }

        fn pages(&self, space: u64) -> u64 {
            10 * space
        }

        fn key(block: &Vec<u64>) -> u64 {
            block[0]
        }

        fn numbers(block: &Vec<u64>) -> &[u64] {
            block
        }

        fn read(&self, _: &Vec<u64>, _: &mut Vec<u8>) -> Result<(), Unreadable> {
            Ok(())
        }

        fn complain(&self, what: &str) {
            panic!("{what}");
        }
    }

    #[test]
    fn what_is_wanted_first_comes_first() {
        let spaces = BTreeSet::from([1, 2, 3]);
        let order = in_order(&Source, &spaces).map(|(space, block, _)| (space, block[0]));
        let order: Vec<_> = order.collect();
        let all = [(1, 0), (2, 0), (2, 10), (3, 0), (3, 10), (3, 20)];
        assert_eq!(order[..2], [(2, 10), (1, 0)]);
        assert_eq!(order[2..], all);
    }
}
