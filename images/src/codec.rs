//! What a frame's pages become on disk, and back.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

use crate::proto::Codec;
use crate::{Compression, PAGE_SIZE};

/// Negative levels leave out entropy coding, by which arrays of small numbers shrink most.
const LEVEL_FAST: i32 = 1;
/// 12 gains nothing over 9 on frames this small; 15 gains a tenth on some for several times the work.
const LEVEL_MAX: i32 = 9;

/// Contexts of one thread, made once: a fresh one costs more than compressing a frame.
#[derive(Default)]
pub(crate) struct Scratch {
    compressor: Option<(i32, Compressor<'static>)>,
    decompressor: Option<Decompressor<'static>>,
    /// Compressed bytes, on their way out or in.
    pub(crate) stored: Vec<u8>,
    /// The pages that remain of a frame without those that are zero.
    pub(crate) pages: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Lends this thread's scratch space.
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(work)
}

/// Whether a page holds nothing but zeros. Ends at the first block that does not.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    page.chunks(128)
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

impl Scratch {
    /// Compresses `data` into `self.stored` where that pays, and says which codec it took; raw frames are stored as
    /// they are.
    pub(crate) fn compress(&mut self, how: Compression, data: &[u8]) -> Codec {
        // What a frame must save to be worth unpacking at each restore, as a part of its size.
        let (level, part) = match how {
            _ if data.is_empty() => return Codec::Raw,
            Compression::None => return Codec::Raw,
            Compression::Fast if looks_random(data) => return Codec::Raw,
            Compression::Fast => (LEVEL_FAST, 8),
            Compression::Max => (LEVEL_MAX, 16),
        };
        // Arrays of floating-point numbers look compressible and are hardly: two pages tell before all are tried.
        let pages = data.len() / PAGE_SIZE;
        if how == Compression::Fast && pages >= 8 {
            let mut page =
                |index: usize| self.shrink(level, 8, &data[index * PAGE_SIZE..][..PAGE_SIZE]);
            if !page(pages / 4) && !page(pages * 3 / 4) {
                return Codec::Raw;
            }
        }
        if self.shrink(level, part, data) {
            Codec::Zstd
        } else {
            Codec::Raw
        }
    }

    /// Compresses `data` into `self.stored`; false where that does not save one `part`th of it.
    fn shrink(&mut self, level: i32, part: usize, data: &[u8]) -> bool {
        let most = data.len() - data.len() / part;
        self.stored.clear();
        self.stored.reserve(most);
        if self
            .compressor
            .as_ref()
            .is_none_or(|(has, _)| *has != level)
        {
            self.compressor = Compressor::new(level).ok().map(|new| (level, new));
        }
        let Some((_, compressor)) = &mut self.compressor else {
            return false;
        };
        // It fails when there is not room enough, that is when `data` would not shrink.
        compressor
            .compress_to_buffer(data, &mut self.stored)
            .is_ok_and(|length| length <= most)
    }

    /// Unpacks one Zstandard frame of exactly `length` bytes from `self.stored` into `out`.
    pub(crate) fn decompress(&mut self, length: usize, out: &mut Vec<u8>) -> Result<(), String> {
        let fail = |error: std::io::Error| format!("a frame cannot be decompressed: {error}");
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new().map_err(fail)?),
        };
        out.clear();
        out.reserve(length);
        // Never writes beyond the vector's capacity, whatever the frame claims.
        let has = decompressor
            .decompress_to_buffer(&self.stored, out)
            .map_err(fail)?;
        if has != length {
            return Err(format!(
                "a frame has {has} bytes of pages where {length} belong"
            ));
        }
        Ok(())
    }
}

/// Whether a sample of the bytes is spread so evenly that no entropy coder gains on it: encrypted, compressed or
/// random data. Costs a few microseconds a frame.
fn looks_random(data: &[u8]) -> bool {
    const SAMPLES: usize = 4096;
    const RUN: usize = 64;
    let mut counts = [0u32; 256];
    let stride = (data.len() / (SAMPLES / RUN)).max(RUN);
    let mut total = 0u64;
    for block in data.chunks(stride) {
        for &byte in &block[..RUN.min(block.len())] {
            counts[usize::from(byte)] += 1;
            total += 1;
        }
    }
    // The chance that two bytes drawn at random are equal is 1/256 for even data, and twice that at 7 bits a byte.
    let pairs: u64 = counts
        .iter()
        .map(|&count| u64::from(count) * u64::from(count))
        .sum();
    (pairs - total) * 256 < total * total + total * total / 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FRAME_PAGES, decode};

    const FRAME_BYTES: usize = FRAME_PAGES * PAGE_SIZE;

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new()
            .update(b"noise")
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    #[test]
    fn zero_pages_are_found() {
        let mut page = vec![0; PAGE_SIZE];
        assert!(is_zero(&page));
        for at in [0, 127, 128, PAGE_SIZE - 1] {
            page[at] = 1;
            assert!(!is_zero(&page));
            page[at] = 0;
        }
    }

    #[test]
    fn random_pages_stay_raw_and_text_shrinks() {
        let text: Vec<u8> = (0..FRAME_BYTES)
            .map(|i| b"the quick brown fox "[i * i % 20])
            .collect();
        for how in [Compression::Fast, Compression::Max] {
            with_scratch(|scratch| {
                assert_eq!(scratch.compress(how, &noise(FRAME_BYTES)), Codec::Raw);
                assert_eq!(scratch.compress(how, &text), Codec::Zstd);
                let stored = scratch.stored.clone();
                let mut out = Vec::new();
                scratch.decompress(text.len(), &mut out).unwrap();
                assert_eq!(out, text);
                assert!(stored.len() < text.len() / 4);
            });
        }
    }

    #[test]
    fn a_frame_never_unpacks_to_more_than_it_should() {
        let stored = zstd::bulk::compress(&vec![7; 16 * FRAME_BYTES], 1).unwrap();
        let mut out = Vec::new();
        assert!(decode::frame(Codec::Zstd, 1, crc32c::crc32c(&stored), &stored, &mut out).is_err());
        assert!(out.capacity() <= FRAME_BYTES);
    }
}
