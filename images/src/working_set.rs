//! The pages that a job touched first after its last restore, kept beside its checkpoints: the next restore brings them in first.

use std::collections::HashSet;
use std::path::PathBuf;

use prost::Message as _;

use crate::{Job, Result, files, proto};

/// Pages that are kept, one of each frame: with frames of 256 KiB a working set of 16 GiB.
const MOST: usize = 1 << 16;
/// As many of [`MOST`] pages, with long numbers.
const LIMIT: usize = 20 * MOST;

impl Job {
    /// What [`learn`](Self::learn) has kept: space and page, in the order in which they were touched. None where there is nothing
    /// that can be read: it only says what to read first.
    #[must_use]
    pub fn working_set(&self) -> Vec<(u64, u64)> {
        let bytes = files::read(&self.working_set_path(), LIMIT).unwrap_or_default();
        decode(&bytes)
    }

    /// Keeps the pages that were waited for, in that order, before those that were `known` already: these may have been wanted just
    /// as soon, and came before anybody had to wait. The last of them go, so that nothing stays for ever that is not needed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when it cannot be written.
    pub fn learn(&self, known: &[(u64, u64)], touched: &[(u64, u64)]) -> Result<()> {
        let path = self.working_set_path();
        let temporary = path.with_extension("tmp");
        files::write(&temporary, &encode(&merge(known, touched)))?;
        files::rename(&temporary, &path)
    }

    fn working_set_path(&self) -> PathBuf {
        self.path().join("working-set")
    }
}

fn merge(known: &[(u64, u64)], touched: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut seen = HashSet::new();
    let stay = &known[..known.len() - known.len() / 4];
    let all = touched.iter().chain(stay).copied();
    all.filter(|page| seen.insert(*page)).take(MOST).collect()
}

fn encode(pages: &[(u64, u64)]) -> Vec<u8> {
    let mut last = 0;
    let mut step = |page: u64| {
        let step = page.wrapping_sub(last) as i64;
        last = page;
        step
    };
    let set = proto::WorkingSet {
        spaces: pages.iter().map(|(space, _)| *space).collect(),
        pages: pages.iter().map(|(_, page)| step(*page)).collect(),
    };
    set.encode_to_vec()
}

fn decode(bytes: &[u8]) -> Vec<(u64, u64)> {
    let set = proto::WorkingSet::decode(bytes).unwrap_or_default();
    let pages = set.pages.iter().scan(0u64, |last, step| {
        *last = last.wrapping_add_signed(*step);
        Some(*last)
    });
    set.spaces.into_iter().zip(pages).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[test]
    fn it_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let job = Store::create(dir.path()).unwrap().create_job("j").unwrap();
        assert_eq!(job.working_set(), []);
        let touched = [(2, u64::MAX >> 12), (1, 7), (2, 1 << 40), (1, 7)];
        job.learn(&[], &touched).unwrap();
        assert_eq!(job.working_set(), touched[..3]);
        std::fs::write(job.working_set_path(), b"something else").unwrap();
        assert_eq!(job.working_set(), []);
    }

    #[test]
    fn what_was_waited_for_comes_first_and_the_last_goes() {
        let known: Vec<_> = (0..8).map(|page| (1, page)).collect();
        let merged = merge(&known, &[(1, 9), (1, 3)]);
        let pages: Vec<_> = merged.iter().map(|(_, page)| *page).collect();
        assert_eq!(pages, [9, 3, 0, 1, 2, 4, 5]);
        let many: Vec<_> = (0..2 * MOST as u64)
            .map(|page| (u64::MAX, page << 40))
            .collect();
        let merged = merge(&known, &many);
        assert_eq!(merged, many[..MOST]);
        assert_eq!(decode(&encode(&merged)), merged);
        assert!(encode(&merged).len() <= LIMIT);
    }
}
