//! Answering faults: finding the page, reading its block, putting it in, against all hindrances.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::frames::{Asked, Data};
use super::space::{Content, Hindrance, Space};
use super::{PageSource, Server, Waiter, lock};
use crate::PAGE_SIZE;

impl<S: PageSource> Server<S> {
    pub(super) fn serve_deferred(self: &Arc<Self>) {
        loop {
            let next = lock(&self.deferred).pop_front();
            let Some(waiter) = next else { return };
            self.serve(waiter);
        }
    }

    /// Answers a fault, or leaves it to whoever reads the block already.
    pub(super) fn serve(self: &Arc<Self>, waiter: Waiter) {
        let space = Arc::clone(&waiter.space);
        loop {
            let address = waiter.address;
            let origin = space.read().layout.origin(address);
            let page = origin.map(|at| at / PAGE_SIZE);
            let block = page.and_then(|page| self.source.locate(space.image, page));
            let (Some(page), Some(block)) = (page, block) else {
                match space.put_zero(address, waiter.write, |layout| {
                    layout.origin(address) == origin
                }) {
                    Ok(true) => return self.statistics.served(waiter.since),
                    Ok(false) => continue,
                    Err(hindrance) => {
                        if !self.overcome(&space, hindrance) {
                            return;
                        }
                        continue;
                    }
                }
            };
            if let (Some(first), Some(last)) =
                (S::numbers(&block).first(), S::numbers(&block).last())
            {
                lock(&self.ahead).fault(space.image, page, &(*first..last + 1));
            }
            let mut waiter = Some(waiter);
            match self.frames.ask(S::key(&block), || waiter.take()) {
                Asked::Joined => {}
                Asked::Here(data) => self.give(&block, Some(&data), waiter),
                Asked::Read(buffer) => {
                    if self.idle.load(Ordering::SeqCst) == 0 {
                        self.add_worker();
                    }
                    self.fetch(&block, buffer, waiter);
                }
            }
            return;
        }
    }

    /// Reads a block and gives it to all who wait for it.
    fn fetch(&self, block: &S::Block, buffer: Vec<u8>, waiter: Option<Waiter>) {
        let data: Option<Data> = self.read(block, buffer).map(Arc::new);
        if let Some(waiter) = waiter {
            self.give(block, data.as_ref(), Some(waiter));
        }
        for waiter in self.frames.finish(S::key(block), data.as_ref()) {
            self.give(block, data.as_ref(), Some(waiter));
        }
    }

    /// The bytes of a block; `None` when they are lost.
    pub(super) fn read(&self, block: &S::Block, mut buffer: Vec<u8>) -> Option<Vec<u8>> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let error = match self.source.read(block, &mut buffer) {
                Ok(()) => return Some(buffer),
                Err(error) => error,
            };
            let patience = if error.damaged {
                self.settings.patience / 8
            } else {
                self.settings.patience
            };
            let pages = S::numbers(block).len();
            if begun.elapsed() >= patience {
                self.source.complain(&format!(
                    "{}; given up: {pages} pages are lost, and who touches them gets SIGBUS",
                    error.what
                ));
                return None;
            }
            self.source.complain(&format!(
                "{}; {pages} pages wait, next try in {} ms",
                error.what,
                pause.as_millis()
            ));
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Puts a block's pages where they belong in the waiter's space, the one that is waited for first.
    pub(super) fn give(&self, block: &S::Block, data: Option<&Data>, waiter: Option<Waiter>) {
        let Some(waiter) = waiter else { return };
        let space = &waiter.space;
        let content = data.map_or(Content::Poison, |data| Content::Bytes(data));
        let pages = S::numbers(block);
        loop {
            match space.put_page(&waiter, pages, content) {
                Ok(true) => break self.statistics.served(waiter.since),
                // What belongs there is something else by now.
                Ok(false) => {
                    let defer = Waiter {
                        space: Arc::clone(space),
                        ..waiter
                    };
                    break lock(&self.deferred).push_back(defer);
                }
                Err(hindrance) => {
                    if !self.overcome(space, hindrance) {
                        return;
                    }
                }
            }
        }
        self.put_all(space, block, content);
    }

    /// Puts a block where it belongs in a space, unless it is in.
    pub(super) fn put_all(&self, space: &Arc<Space>, block: &S::Block, content: Content<'_>) {
        if space.done().blocks.contains(&S::key(block)) {
            return;
        }
        while let Err(hindrance) = space.put_all(S::numbers(block), content) {
            if !self.overcome(space, hindrance) {
                return;
            }
        }
        let mut done = space.done();
        if done.blocks.insert(S::key(block)) {
            let pages = S::numbers(block).len() as u64;
            done.pages += pages;
            self.statistics.done(pages);
        }
    }

    /// Does what is needed before pages can be put in; false when nothing helps.
    fn overcome(&self, space: &Arc<Space>, hindrance: Hindrance) -> bool {
        match hindrance {
            Hindrance::Gone => {
                if space.set_gone() {
                    let pages = self.source.pages(space.image);
                    self.statistics
                        .forget(pages.saturating_sub(space.done().pages));
                }
                return false;
            }
            Hindrance::Memory => std::thread::sleep(Duration::from_millis(20)),
            Hindrance::Message => match self.hear(space) {
                Some(fault) => lock(&self.deferred).push_back(fault),
                // It was read; the thread that it told of has yet to wake.
                None => std::thread::sleep(Duration::from_micros(20)),
            },
        }
        true
    }
}
