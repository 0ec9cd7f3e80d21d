//! The bytes of a segment: a header, frames, a footer that says what the frames are, a trailer that finds the footer.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;

use crate::error::Flaw;
use crate::manifest::{VERSION, le32, le64};
use crate::placement::Stored;
use crate::proto::{self, Codec};
use crate::{Error, FRAME_PAGES, Job, PAGE_SIZE, PageSet, Result, codec, decode, files, pageset};

const MAGIC: &[u8; 8] = b"ckptdseg";
const END: &[u8; 8] = b"ckptdend";
/// Magic, version, four zero bytes, id, hash of the job's name.
pub(crate) const HEADER: usize = 64;
/// Length of the footer, hash of header and footer, magic.
pub(crate) const TRAILER: usize = 48;
/// Bounds what a reader takes into memory: 4 TiB of pages have a footer of this size.
pub(crate) const FOOTER_LIMIT: usize = 256 << 20;

/// Names a segment, for ever and everywhere.
pub(crate) type Id = [u8; 16];

pub(crate) fn file_name(id: &[u8]) -> String {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    hex + ".seg"
}

pub(crate) fn header(id: &Id, job: &str) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(id);
    bytes[32..].copy_from_slice(blake3::hash(job.as_bytes()).as_bytes());
    bytes
}

/// Binds a footer to the segment it was written for.
pub(crate) fn hash(header: &[u8], footer: &[u8]) -> blake3::Hash {
    blake3::Hasher::new()
        .update(header)
        .update(footer)
        .finalize()
}

pub(crate) fn trailer(footer: &[u8], hash: &blake3::Hash) -> [u8; TRAILER] {
    let mut bytes = [0; TRAILER];
    bytes[..8].copy_from_slice(&(footer.len() as u64).to_le_bytes());
    bytes[8..40].copy_from_slice(hash.as_bytes());
    bytes[40..].copy_from_slice(END);
    bytes
}

/// What a footer says, checked.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) frames: proto::FrameTable,
    pub(crate) sections: Vec<Section>,
}

/// Frames of one space.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) space: u64,
    pub(crate) held: Arc<PageSet>,
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// The rank of each frame's first page in `held`.
    ranks: Vec<u64>,
}

impl Section {
    /// The frame that has a page which the section holds, and the rank of its first page.
    pub(crate) fn frame(&self, page: u64) -> (usize, u64) {
        // The rank of a page counts itself.
        let rank = self.held.rank(page).saturating_sub(1);
        let frame = self.ranks.partition_point(|&first| first <= rank) - 1;
        (self.first + frame, self.ranks[frame])
    }

    /// So many pages from the one with this rank on.
    pub(crate) fn pages(&self, rank: u64, count: usize) -> impl Iterator<Item = u64> {
        let mut pages = self.held.iter();
        if let Some(first) = self.held.select(rank) {
            pages.advance_to(first);
        }
        pages.take(count)
    }
}

impl Layout {
    /// `end` is where the footer lies, and so the end of the frames.
    pub(crate) fn decode(footer: &[u8], end: u64) -> Result<Self, Flaw> {
        let flaw = |what: String| Flaw::at(end, what);
        let footer = proto::Footer::decode(footer)
            .map_err(|error| flaw(format!("the footer is not readable: {error}")))?;
        let frames = footer.frames.unwrap_or_default();
        let count = frames.offset.len();
        let columns = [
            frames.length.len(),
            frames.pages.len(),
            frames.codec.len(),
            frames.crc.len(),
        ];
        if columns.iter().any(|&has| has != count) {
            return Err(flaw(
                "the columns of the frame table differ in length".into(),
            ));
        }
        for index in 0..count {
            check_frame(&frames, index, end)
                .map_err(|what| flaw(format!("frame {index} {what}")))?;
        }
        let mut sections: Vec<Section> = Vec::new();
        let mut next = 0;
        for section in &footer.sections {
            let space = section.space;
            let (first, has) = (section.first_frame as usize, section.frames as usize);
            if first != next || has > count - next {
                return Err(flaw(format!(
                    "the section of space {space} does not follow the one before it"
                )));
            }
            next += has;
            let held = pageset::decode(&section.held).map_err(flaw)?;
            let mut pages = 0;
            let ranks = frames.pages[first..next].iter().map(|&count| {
                pages += u64::from(count);
                pages - u64::from(count)
            });
            let ranks = ranks.collect();
            if pages != held.len() {
                return Err(flaw(format!(
                    "the frames of space {space} have {pages} pages, its set {}",
                    held.len()
                )));
            }
            sections.push(Section {
                space,
                held: Arc::new(held),
                first,
                count: has,
                ranks,
            });
        }
        if next != count {
            return Err(flaw("frames belong to no space".into()));
        }
        Ok(Self { frames, sections })
    }

    /// The stretches between the frames, and before the first: each shorter than a page, so that none hides data.
    pub(crate) fn gaps(&self, end: u64) -> Result<Vec<(u64, u64)>, Flaw> {
        let mut order: Vec<(u64, u32)> = self
            .frames
            .offset
            .iter()
            .copied()
            .zip(self.frames.length.iter().copied())
            .collect();
        order.sort_unstable();
        // Frames with the same bytes may share them.
        order.dedup();
        let mut gaps = Vec::new();
        let mut at = HEADER as u64;
        for (offset, length) in order.into_iter().chain([(end, 0)]) {
            if offset < at {
                return Err(Flaw::at(offset, "two frames overlap"));
            }
            if offset - at >= PAGE_SIZE as u64 {
                return Err(Flaw::at(at, "bytes belong to no frame"));
            }
            if offset > at {
                gaps.push((at, offset));
            }
            at = offset + u64::from(length);
        }
        Ok(gaps)
    }
}

fn check_frame(frames: &proto::FrameTable, index: usize, end: u64) -> Result<(), &'static str> {
    let (offset, length, pages) = (
        frames.offset[index],
        frames.length[index],
        frames.pages[index] as usize,
    );
    if pages == 0 || pages > FRAME_PAGES {
        return Err("has an impossible number of pages");
    }
    let fits = match Codec::try_from(frames.codec[index]) {
        Ok(Codec::Raw) => length as usize == pages * PAGE_SIZE,
        Ok(Codec::Zstd) => length > 0 && (length as usize) < pages * PAGE_SIZE,
        Err(_) => return Err("has an unknown codec"),
    };
    if !fits {
        return Err("has an impossible length");
    }
    if offset < HEADER as u64
        || offset
            .checked_add(u64::from(length))
            .is_none_or(|frame_end| frame_end > end)
    {
        return Err("lies outside of the segment");
    }
    Ok(())
}

/// A segment that is open for reading.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: Id,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// Where the footer begins.
    pub(crate) end: u64,
    pub(crate) layout: Layout,
}

/// Segments that are open: checkpoints share them.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    open: HashMap<(Vec<u8>, u64, Vec<u8>), Arc<Segment>>,
}

impl Segments {
    /// The one that a manifest of `job` refers to.
    pub(crate) fn get(
        &mut self,
        job: &Job,
        reference: &proto::SegmentReference,
    ) -> Result<Arc<Segment>> {
        let key = (
            reference.id.clone(),
            reference.length,
            reference.hash.clone(),
        );
        if let Some(open) = self.open.get(&key) {
            return Ok(Arc::clone(open));
        }
        let path = job.segments().join(file_name(&reference.id));
        let segment = Arc::new(Segment::open(&path, job.name(), reference)?);
        self.open.insert(key, Arc::clone(&segment));
        Ok(segment)
    }
}

impl Segment {
    /// Opens the segment that a manifest of `job` refers to, and no other.
    pub(crate) fn open(
        path: &Path,
        job: &str,
        reference: &proto::SegmentReference,
    ) -> Result<Self> {
        let fail = |flaw| Error::damaged(path, flaw);
        let (file, length) = match files::open(path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(fail(Flaw::at(0, "it is missing")));
            }
            opened => opened?,
        };
        if length != reference.length || length < (HEADER + TRAILER) as u64 {
            let flaw = format!(
                "it has {length} bytes where the checkpoint knows {}",
                reference.length
            );
            return Err(fail(Flaw::at(length.min(reference.length), flaw)));
        }
        let mut start = [0; HEADER];
        read_at(&file, path, &mut start, 0)?;
        let version = le32(&start[8..]);
        if start.starts_with(MAGIC) && version != VERSION {
            return Err(fail(Flaw::Unsupported(format!(
                "version {version} of the format"
            ))));
        }
        let id: Id = reference.id.as_slice().try_into().unwrap_or_default();
        if start != header(&id, job) {
            return Err(fail(Flaw::at(
                0,
                "its header is not the one of this segment of this job",
            )));
        }
        let mut last = [0; TRAILER];
        let trailer_at = length - TRAILER as u64;
        read_at(&file, path, &mut last, trailer_at)?;
        let size = le64(&last);
        if size > FOOTER_LIMIT as u64 || size > trailer_at - HEADER as u64 {
            return Err(fail(Flaw::at(
                trailer_at,
                format!("its footer cannot have {size} bytes"),
            )));
        }
        let end = trailer_at - size;
        let mut footer = vec![0; size as usize];
        read_at(&file, path, &mut footer, end)?;
        let hash = hash(&start, &footer);
        if last != trailer(&footer, &hash) {
            return Err(fail(Flaw::at(
                end,
                "its footer or trailer does not have the hash it was written with",
            )));
        }
        if hash.as_bytes() != reference.hash.as_slice() {
            return Err(fail(Flaw::at(
                end,
                "its footer is not the one that the checkpoint knows",
            )));
        }
        let layout = Layout::decode(&footer, end).map_err(fail)?;
        Ok(Self {
            id,
            path: path.into(),
            file,
            end,
            layout,
        })
    }

    /// The bytes of a frame as they are stored.
    pub(crate) fn stored(&self, index: usize) -> Result<(Stored, Vec<u8>)> {
        let frames = &self.layout.frames;
        let offset = frames.offset[index];
        let fail = |what| Error::damaged(&self.path, Flaw::Damage { offset, what });
        let mut bytes = vec![0; frames.length[index] as usize];
        read_at(&self.file, &self.path, &mut bytes, offset)?;
        decode::check_crc(&bytes, frames.crc[index]).map_err(fail)?;
        let stored = Stored::of(frames, index).ok_or_else(|| fail("an unknown codec".into()))?;
        Ok((stored, bytes))
    }

    /// All pages of a frame, into `out`.
    pub(crate) fn read(&self, index: usize, out: &mut Vec<u8>) -> Result<()> {
        let frames = &self.layout.frames;
        // Lengths were checked against page counts when the footer was read.
        let (offset, length) = (frames.offset[index], frames.length[index] as usize);
        let fail = |what| Error::damaged(&self.path, Flaw::Damage { offset, what });
        if frames.codec[index] == Codec::Raw as i32 {
            out.resize(length, 0);
            read_at(&self.file, &self.path, out, offset)?;
            return decode::check_crc(out, frames.crc[index]).map_err(fail);
        }
        codec::with_scratch(|scratch| {
            scratch.stored.resize(length, 0);
            read_at(&self.file, &self.path, &mut scratch.stored, offset)?;
            decode::check_crc(&scratch.stored, frames.crc[index]).map_err(fail)?;
            scratch
                .decompress(frames.pages[index] as usize * PAGE_SIZE, out)
                .map_err(fail)
        })
    }

    /// That a stretch between frames holds zeros.
    pub(crate) fn check_gap(&self, (start, end): (u64, u64)) -> Result<()> {
        let mut bytes = vec![0; (end - start) as usize];
        read_at(&self.file, &self.path, &mut bytes, start)?;
        match bytes.iter().position(|&byte| byte != 0) {
            Some(at) => Err(Error::damaged(
                &self.path,
                Flaw::at(start + at as u64, "padding is not zero"),
            )),
            None => Ok(()),
        }
    }
}

/// Reads all of `out`; a file that is too short is damaged.
fn read_at(file: &File, path: &Path, out: &mut [u8], offset: u64) -> Result<()> {
    match file.read_exact_at(out, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Error::damaged(path, Flaw::at(offset, "it ends too early")))
        }
        done => done.map_err(Error::io("read", path)),
    }
}
