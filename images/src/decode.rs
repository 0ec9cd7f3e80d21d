//! The decoders of untrusted bytes by themselves, for tools and fuzzers. [`Checkpoint`](crate::Checkpoint) is what
//! programs want.

pub use crate::error::Flaw;
use crate::proto::{Codec, Manifest};
use crate::segment::Layout;
use crate::{FRAME_PAGES, PAGE_SIZE, PageSet, codec, manifest as manifests, pageset, space};

/// A whole manifest file.
///
/// # Errors
///
/// A [`Flaw`] where the bytes are not a manifest of a version and with features known here.
pub fn manifest(bytes: &[u8]) -> Result<Manifest, Flaw> {
    manifests::decode(bytes)
}

/// The records of a manifest, without the header and the hash around them.
///
/// # Errors
///
/// A [`Flaw`] where they are not readable or contradict each other.
pub fn records(bytes: &[u8]) -> Result<Manifest, Flaw> {
    manifests::decode_records(bytes, 0)
}

/// The footer of a segment whose frames end at byte `end`. Gives the number of frames.
///
/// # Errors
///
/// A [`Flaw`] where it is not readable, contradicts itself, or names bytes beyond `end`.
pub fn footer(bytes: &[u8], end: u64) -> Result<usize, Flaw> {
    let layout = Layout::decode(bytes, end)?;
    layout.gaps(end)?;
    Ok(layout.frames.offset.len())
}

/// The records of a manifest together with a footer, as if each of its segments had that one. Gives the number of pages
/// with content.
///
/// # Errors
///
/// A [`Flaw`] where either is not readable, or they contradict each other.
pub fn layers(records: &[u8], footer: &[u8], end: u64) -> Result<u64, Flaw> {
    let manifest = manifests::decode_records(records, 0)?;
    let layout = Layout::decode(footer, end)?;
    let layouts = vec![&layout; manifest.segments.len()];
    let spaces = space::assemble(&manifest, &layouts)?;
    let live = spaces.iter().flat_map(space::Space::live);
    Ok(live.map(|pages| pages.len()).sum())
}

/// A set of page numbers.
///
/// # Errors
///
/// What is wrong with the bytes.
pub fn page_set(bytes: &[u8]) -> Result<PageSet, String> {
    pageset::decode(bytes)
}

/// The pages of a frame, from its stored bytes, into `out`.
///
/// # Errors
///
/// What is wrong: the checksum, the compressed bytes, or the number of pages.
pub fn frame(
    codec: Codec,
    pages: usize,
    crc: u32,
    stored: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), String> {
    if pages == 0 || pages > FRAME_PAGES {
        return Err(format!("a frame cannot have {pages} pages"));
    }
    check_crc(stored, crc)?;
    match codec {
        Codec::Raw if stored.len() != pages * PAGE_SIZE => Err("a frame has a wrong length".into()),
        Codec::Raw => {
            out.clear();
            out.extend_from_slice(stored);
            Ok(())
        }
        Codec::Zstd => codec::with_scratch(|scratch| {
            scratch.stored.clear();
            scratch.stored.extend_from_slice(stored);
            scratch.decompress(pages * PAGE_SIZE, out)
        }),
    }
}

pub(crate) fn check_crc(stored: &[u8], crc: u32) -> Result<(), String> {
    if crc32c::crc32c(stored) == crc {
        Ok(())
    } else {
        Err("a frame does not have the checksum it was written with".into())
    }
}
