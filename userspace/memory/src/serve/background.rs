//! Bringing in what nobody has asked for yet.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::frames::Asked;
use super::space::{Content, Space};
use super::{PageSource, Server, lock};

/// Blocks that are read at the same time.
const READERS: usize = 2;

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
        let mut any = false;
        for image in images {
            let blocks = Mutex::new(self.source.blocks(image));
            let work = || {
                let mut any = false;
                loop {
                    let next = lock(&blocks).next();
                    let Some(block) = next else { return any };
                    any |= self.bring(image, &block);
                }
            };
            any |= std::thread::scope(|scope| {
                let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(work)).collect();
                let ended = readers
                    .into_iter()
                    .map(|reader| reader.join().unwrap_or(false));
                ended.fold(false, |any, more| any | more)
            });
        }
        any
    }

    fn alive(&self) -> Vec<Arc<Space>> {
        let spaces = lock(&self.spaces);
        let alive = spaces.values().filter(|space| !space.is_gone());
        alive.cloned().collect()
    }

    /// Brings a block into each space that lacks it; false when there is none.
    fn bring(self: &Arc<Self>, image: u64, block: &S::Block) -> bool {
        let key = S::key(block);
        let mut lacking = self.alive();
        lacking.retain(|space| space.image == image && !space.done().blocks.contains(&key));
        if lacking.is_empty() {
            return false;
        }
        self.give_way();
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

    /// Those who wait come first.
    fn give_way(&self) {
        for _ in 0..40 {
            if self.idle.load(Ordering::Relaxed) >= super::WORKERS {
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
