//! Sets of pages as bytes: the portable 64-bit serialization of Roaring bitmaps, without run containers.
//!
//! <https://github.com/RoaringBitmap/RoaringFormatSpec>

use std::ops::RangeInclusive;

use crate::PageSet;

/// An address has at most 57 bits below the kernel's half, a page number 12 less. Objects count from 0.
pub(crate) const PAGE_LIMIT: u64 = 1 << 52;

const COOKIE: u32 = 12346;
/// From here up a container is a bitmap, below it an array.
const ARRAY_LIMIT: usize = 4096;
const BITMAP_BYTES: usize = 8192;

pub(crate) fn encode(set: &PageSet) -> Vec<u8> {
    if set.is_empty() {
        return Vec::new();
    }
    let mut bytes = Vec::with_capacity(set.serialized_size());
    // Writing to a vector cannot fail.
    let _ = set.serialize_into(&mut bytes);
    bytes
}

/// The set, if `bytes` are exactly what [`encode`] makes of it. An empty slice is the empty set.
pub(crate) fn decode(bytes: &[u8]) -> Result<PageSet, String> {
    if bytes.is_empty() {
        return Ok(PageSet::new());
    }
    // The library takes containers in any order, and runs that unfold to a thousand times their size.
    check(bytes).ok_or("a page set is malformed")?;
    let set = PageSet::deserialize_from(bytes)
        .map_err(|error| format!("a page set is malformed: {error}"))?;
    match set.max() {
        Some(page) if page >= PAGE_LIMIT => {
            Err(format!("a page set holds the impossible page {page:#x}"))
        }
        _ => Ok(set),
    }
}

/// Adds ascending pages, run by run. Returns how many of them are new.
pub(crate) fn insert(set: &mut PageSet, pages: &[u64]) -> u64 {
    runs(pages).map(|run| set.insert_range(run)).sum()
}

/// Removes ascending pages, run by run.
pub(crate) fn remove(set: &mut PageSet, pages: &[u64]) {
    if !set.is_empty() {
        for run in runs(pages) {
            set.remove_range(run);
        }
    }
}

fn runs(pages: &[u64]) -> impl Iterator<Item = RangeInclusive<u64>> {
    pages
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| run[0]..=run[run.len() - 1])
}

/// Whether the containers are in order, within the bytes, and fill them.
fn check(mut bytes: &[u8]) -> Option<()> {
    let bitmaps = u64::from_le_bytes(take(&mut bytes)?);
    let mut last = None;
    for _ in 0..bitmaps {
        let key = u32::from_le_bytes(take(&mut bytes)?);
        if last.is_some_and(|last| last >= key) || u32::from_le_bytes(take(&mut bytes)?) != COOKIE {
            return None;
        }
        last = Some(key);
        let containers = u32::from_le_bytes(take(&mut bytes)?) as usize;
        if containers == 0 || containers > 1 << 16 {
            return None;
        }
        let (descriptions, rest) = bytes.split_at_checked(4 * containers)?;
        let (offsets, mut data) = rest.split_at_checked(4 * containers)?;
        let mut offset = 8 + 8 * containers;
        let mut last = None;
        for (description, place) in descriptions.chunks_exact(4).zip(offsets.chunks_exact(4)) {
            let key = u16::from_le_bytes([description[0], description[1]]);
            let count = usize::from(u16::from_le_bytes([description[2], description[3]])) + 1;
            let length = if count <= ARRAY_LIMIT {
                2 * count
            } else {
                BITMAP_BYTES
            };
            if last.is_some_and(|last| last >= key)
                || place != u32::try_from(offset).ok()?.to_le_bytes()
            {
                return None;
            }
            last = Some(key);
            data = data.get(length..)?;
            offset += length;
        }
        bytes = data;
    }
    bytes.is_empty().then_some(())
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_come_back() {
        for set in [
            PageSet::new(),
            PageSet::from_iter([0]),
            PageSet::from_iter(0..100_000),
            PageSet::from_iter([1, 1 << 20, (1 << 33) + 5, PAGE_LIMIT - 1]),
        ] {
            assert_eq!(decode(&encode(&set)).unwrap(), set);
        }
    }

    #[test]
    fn impossible_pages_and_tails_are_refused() {
        assert!(decode(&encode(&PageSet::from_iter([PAGE_LIMIT]))).is_err());
        let mut bytes = encode(&PageSet::from_iter([7]));
        bytes.push(0);
        assert!(decode(&bytes).is_err());
    }
}
