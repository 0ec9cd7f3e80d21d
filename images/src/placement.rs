//! Which frames a segment that is being written has, and where.

use std::collections::BTreeMap;

use crate::proto::{self, Codec};
use crate::{Error, PAGE_SIZE, PageSet, Result, pageset, segment};

/// The frames given a place so far in one segment.
#[derive(Debug)]
pub(crate) struct Placement {
    /// Where the segment's next frame may begin.
    pub(crate) end: u64,
    /// By space and round.
    pub(crate) sections: BTreeMap<(u64, u32), Section>,
}

/// Pages of a space that were put in one round.
#[derive(Debug, Default)]
pub(crate) struct Section {
    pub(crate) held: PageSet,
    frames: Vec<Frame>,
}

/// The stored bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stored {
    pub(crate) codec: Codec,
    pub(crate) length: u32,
    pub(crate) crc: u32,
}

impl Stored {
    pub(crate) fn new(codec: Codec, bytes: &[u8]) -> Self {
        Self {
            codec,
            length: bytes.len() as u32,
            crc: crc32c::crc32c(bytes),
        }
    }

    /// Those of a frame in a table; `None` for a codec that is not known.
    pub(crate) fn of(frames: &proto::FrameTable, index: usize) -> Option<Self> {
        Some(Self {
            codec: Codec::try_from(frames.codec[index]).ok()?,
            length: frames.length[index],
            crc: frames.crc[index],
        })
    }
}

#[derive(Debug)]
struct Frame {
    chunk: u64,
    first: u64,
    last: u64,
    pages: u8,
    offset: u64,
    stored: Stored,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            end: segment::HEADER as u64,
            sections: BTreeMap::new(),
        }
    }
}

impl Placement {
    /// A place for the bytes of a frame.
    pub(crate) fn place(&mut self, stored: Stored) -> u64 {
        // Raw pages lie on page boundaries, so that they can be mapped or read past the page cache.
        let align = match stored.codec {
            Codec::Raw => PAGE_SIZE as u64,
            Codec::Zstd => 1,
        };
        let offset = self.end.next_multiple_of(align);
        self.end = offset + u64::from(stored.length);
        offset
    }

    /// Notes that a frame with these pages, ascending, has its bytes at `offset`.
    pub(crate) fn add(
        &mut self,
        (space, round): (u64, u32),
        chunk: u64,
        pages: &[u64],
        offset: u64,
        stored: Stored,
    ) {
        let (Some(&first), Some(&last)) = (pages.first(), pages.last()) else {
            return;
        };
        let section = self.sections.entry((space, round)).or_default();
        pageset::insert(&mut section.held, pages);
        section.frames.push(Frame {
            chunk,
            first,
            last,
            pages: pages.len() as u8,
            offset,
            stored,
        });
    }

    /// The footer of the segment, whose sections are in the order of `sections`.
    pub(crate) fn footer(&mut self) -> Result<proto::Footer> {
        let (mut table, mut sections) = (proto::FrameTable::default(), Vec::new());
        for (&(space, _), section) in &mut self.sections {
            let frames = &mut section.frames;
            frames.sort_unstable_by_key(|frame| (frame.chunk, frame.first));
            if frames.windows(2).any(|pair| pair[0].last >= pair[1].first) {
                return Err(Error::Pages {
                    space,
                    why: "its chunks overlap or are not in order".into(),
                });
            }
            sections.push(proto::Section {
                space,
                held: pageset::encode(&section.held),
                first_frame: table.offset.len() as u32,
                frames: frames.len() as u32,
            });
            for frame in frames {
                table.offset.push(frame.offset);
                table.length.push(frame.stored.length);
                table.pages.push(u32::from(frame.pages));
                table.codec.push(frame.stored.codec.into());
                table.crc.push(frame.stored.crc);
            }
        }
        Ok(proto::Footer {
            frames: Some(table),
            sections,
        })
    }
}
