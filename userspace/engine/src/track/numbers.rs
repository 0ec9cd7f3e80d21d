//! How the spaces of pages of a job are numbered.

use std::collections::HashMap;

use super::shared::Key;

/// Numbers of page spaces while a job is captured. Those of watched processes stay the same from checkpoint to checkpoint; no other
/// number is ever used twice.
#[derive(Debug, Default, Clone)]
pub(crate) struct SpaceNumbers {
    pub(super) watched: HashMap<u32, u64>,
    /// Of shared memory, known before or met now.
    pub(super) objects: HashMap<Key, u64>,
    /// Sockets of ours in the job while its memory is coming in, by inode; then its mappings are watched for missing pages.
    pub(crate) sockets: Option<[u64; 2]>,
    pub(crate) last: u64,
}

impl SpaceNumbers {
    pub(crate) fn of(&mut self, pid: u32) -> u64 {
        match self.watched.get(&pid) {
            Some(&number) => number,
            None => self.fresh(),
        }
    }

    pub(crate) fn of_object(&mut self, key: Key) -> u64 {
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
