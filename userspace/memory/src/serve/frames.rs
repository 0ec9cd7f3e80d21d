//! Blocks of pages on their way from storage: each is read once, whoever asks meanwhile; and kept as long as there is room.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The bytes of a block.
pub(crate) type Data = Arc<Vec<u8>>;

/// `W`: what is known of those who wait for a block.
#[derive(Debug)]
pub(crate) struct Frames<W> {
    inner: Mutex<Inner<W>>,
    /// Bytes of blocks to keep.
    limit: usize,
}

#[derive(Debug)]
struct Inner<W> {
    entries: HashMap<u64, Entry<W>>,
    /// Blocks that are kept, oldest first.
    kept: VecDeque<u64>,
    bytes: usize,
    /// Buffers to read into.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
enum Entry<W> {
    Reading(Vec<W>),
    Here(Data),
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Asked {
    /// Read it, into this buffer, and tell by [`Frames::finish`].
    Read(Vec<u8>),
    /// Somebody reads it, and will look after whoever waits.
    Joined,
    /// Here it is.
    Here(Data),
}

impl<W> Frames<W> {
    pub(crate) fn new(limit: usize) -> Self {
        let inner = Inner {
            entries: HashMap::new(),
            kept: VecDeque::new(),
            bytes: 0,
            spare: Vec::new(),
        };
        Self {
            inner: Mutex::new(inner),
            limit,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<W>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for block `key` for the sake of `waiter`, if somebody waits.
    pub(crate) fn ask(&self, key: u64, waiter: impl FnOnce() -> Option<W>) -> Asked {
        let mut inner = self.lock();
        match inner.entries.get_mut(&key) {
            Some(Entry::Reading(waiting)) => {
                waiting.extend(waiter());
                Asked::Joined
            }
            Some(Entry::Here(data)) => Asked::Here(Arc::clone(data)),
            None => {
                inner.entries.insert(key, Entry::Reading(Vec::new()));
                Asked::Read(inner.spare.pop().unwrap_or_default())
            }
        }
    }

    /// The block was read (`None`: it cannot be). Gives those who have joined since.
    pub(crate) fn finish(&self, key: u64, data: Option<&Data>) -> Vec<W> {
        let mut inner = self.lock();
        let entry = match data {
            Some(data) => inner.entries.insert(key, Entry::Here(Arc::clone(data))),
            None => inner.entries.remove(&key),
        };
        if let Some(data) = data {
            inner.bytes += data.capacity();
            inner.kept.push_back(key);
            while inner.bytes > self.limit && inner.kept.len() > 1 {
                inner.drop_oldest();
            }
        }
        match entry {
            Some(Entry::Reading(waiting)) => waiting,
            _ => Vec::new(),
        }
    }
}

impl<W> Inner<W> {
    fn drop_oldest(&mut self) {
        let Some(key) = self.kept.pop_front() else {
            return;
        };
        if let Some(Entry::Here(data)) = self.entries.remove(&key) {
            self.bytes -= data.capacity();
            // Fresh memory would have to be faulted in, page by page.
            if let Ok(buffer) = Arc::try_unwrap(data)
                && self.spare.len() < 16
            {
                self.spare.push(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_read_once() {
        let frames = Frames::new(10);
        assert!(matches!(frames.ask(1, || Some("a")), Asked::Read(_)));
        assert!(matches!(frames.ask(1, || Some("b")), Asked::Joined));
        assert!(matches!(frames.ask(1, || None), Asked::Joined));
        let data = Arc::new(vec![7; 8]);
        assert_eq!(frames.finish(1, Some(&data)), ["b"]);
        assert!(matches!(frames.ask(1, || Some("c")), Asked::Here(data) if data[0] == 7));
    }

    #[test]
    fn a_block_that_cannot_be_read_is_asked_for_anew() {
        let frames = Frames::new(10);
        assert!(matches!(frames.ask(1, || Some("a")), Asked::Read(_)));
        assert!(matches!(frames.ask(1, || Some("b")), Asked::Joined));
        assert_eq!(frames.finish(1, None), ["b"]);
        assert!(matches!(frames.ask(1, || Some("c")), Asked::Read(_)));
    }

    #[test]
    fn the_oldest_make_room() {
        let frames: Frames<()> = Frames::new(20);
        for key in 0..5 {
            assert!(matches!(frames.ask(key, || None), Asked::Read(_)));
            frames.finish(key, Some(&Arc::new(vec![0; 8])));
        }
        for key in 0..3 {
            assert!(matches!(frames.ask(key, || None), Asked::Read(_)), "{key}");
        }
        assert!(matches!(frames.ask(4, || None), Asked::Here(_)));
    }
}
