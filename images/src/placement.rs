//! Which frames a segment that is being written has, and where.

use std::collections::BTreeMap;

use crate::proto::{self, Codec};
use crate::{Error, PAGE_SIZE, PageSet, Result, pageset, segment};

/// The frames given a place so far.
#[derive(Debug)]
pub(crate) struct Placement {
    /// Where the segment's next frame may begin.
    pub(crate) end: u64,
    /// Pages in frames.
    pub(crate) pages: u64,
    /// Something was given a place and then not written.
    pub(crate) failed: bool,
    spaces: BTreeMap<u64, Space>,
}

#[derive(Debug, Default)]
struct Space {
    frames: Vec<Frame>,
    held: PageSet,
    zero: PageSet,
}

#[derive(Debug)]
struct Frame {
    chunk: u64,
    first: u64,
    last: u64,
    offset: u64,
    length: u32,
    crc: u32,
    pages: u8,
    codec: Codec,
}

impl Default for Placement {
    fn default() -> Self {
        let end = segment::HEADER as u64;
        Self {
            end,
            pages: 0,
            failed: false,
            spaces: BTreeMap::new(),
        }
    }
}

impl Placement {
    /// Notes the pages of a frame, and those that are zero, and gives the frame its place in the file.
    pub(crate) fn add(
        &mut self,
        space: u64,
        chunk: u64,
        zero: &[u64],
        held: &[u64],
        codec: Codec,
        length: u32,
        crc: u32,
    ) -> Result<u64> {
        let entry = self.spaces.entry(space).or_default();
        let twice = held
            .iter()
            .chain(zero)
            .find(|&&page| entry.held.contains(page) || entry.zero.contains(page));
        if let Some(page) = twice {
            return Err(Error::Pages {
                space,
                why: format!("page {page:#x} was given twice"),
            });
        }
        insert(&mut entry.zero, zero);
        insert(&mut entry.held, held);
        let (Some(&first), Some(&last)) = (held.first(), held.last()) else {
            return Ok(self.end);
        };
        // Raw pages lie on page boundaries, so that they can be mapped or read past the page cache.
        let align = if codec == Codec::Raw {
            PAGE_SIZE as u64
        } else {
            1
        };
        let offset = self.end.next_multiple_of(align);
        self.end = offset + u64::from(length);
        self.pages += held.len() as u64;
        entry.frames.push(Frame {
            chunk,
            first,
            last,
            offset,
            length,
            crc,
            pages: held.len() as u8,
            codec,
        });
        Ok(offset)
    }

    /// The footer, and where the manifest says that the pages are.
    pub(crate) fn layout(&mut self) -> Result<(proto::Footer, Vec<proto::SpacePages>)> {
        let (mut table, mut sections) = (proto::FrameTable::default(), Vec::new());
        let mut spaces = Vec::new();
        for (&space, has) in &mut self.spaces {
            has.frames
                .sort_unstable_by_key(|frame| (frame.chunk, frame.first));
            if has
                .frames
                .windows(2)
                .any(|pair| pair[0].last >= pair[1].first)
            {
                return Err(Error::Pages {
                    space,
                    why: "its chunks overlap or are not in order".into(),
                });
            }
            let layers = if has.frames.is_empty() {
                Vec::new()
            } else {
                sections.push(proto::Section {
                    space,
                    held: pageset::encode(&has.held),
                    first_frame: table.offset.len() as u32,
                    frames: has.frames.len() as u32,
                });
                vec![proto::Layer {
                    segment: 0,
                    live: None,
                }]
            };
            for frame in &has.frames {
                table.offset.push(frame.offset);
                table.length.push(frame.length);
                table.pages.push(u32::from(frame.pages));
                table.codec.push(frame.codec.into());
                table.crc.push(frame.crc);
            }
            spaces.push(proto::SpacePages {
                space,
                layers,
                zero: pageset::encode(&has.zero),
            });
        }
        Ok((
            proto::Footer {
                frames: Some(table),
                sections,
            },
            spaces,
        ))
    }
}

/// Adds ascending pages, run by run.
fn insert(set: &mut PageSet, pages: &[u64]) {
    for run in pages.chunk_by(|a, b| a + 1 == *b) {
        if let (Some(&first), Some(&last)) = (run.first(), run.last()) {
            set.insert_range(first..=last);
        }
    }
}
