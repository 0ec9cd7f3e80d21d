//! Copying the pages of segments that are still needed into a new one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::lane::Lane;
use crate::placement::{Placement, Stored};
use crate::proto::{self, Codec};
use crate::segment::Segment;
use crate::{Compression, FRAME_PAGES, PAGE_SIZE, PageSet, Result, codec, files};

/// A segment, and what of it is needed: pages by section.
#[derive(Debug)]
pub(crate) struct Needed {
    pub(crate) segment: Arc<Segment>,
    pub(crate) pages: BTreeMap<usize, PageSet>,
}

/// Where the sections of old segments are now.
#[derive(Debug)]
pub(crate) struct Rewritten {
    pub(crate) lane: Lane,
    pub(crate) reference: proto::SegmentReference,
    /// By id of the old segment and index of its section: the index in the new one, and the pages it has.
    pub(crate) sections: HashMap<(Vec<u8>, usize), (u32, PageSet)>,
}

/// Writes a new segment with those pages. It has no name yet; until it has one, `prune` leaves it alone as long as it
/// is locked, which it has to be.
pub(crate) fn rewrite(
    lane: Lane,
    needed: &[Needed],
    go_on: &dyn Fn() -> Result<()>,
) -> Result<Rewritten> {
    let mut copy = Copy {
        lane,
        placement: Placement::default(),
        section: (0, 0),
        chunk: 0,
        frames: HashMap::new(),
        numbers: Vec::new(),
        pages: Vec::new(),
    };
    // Any number that is not used twice in a space does as the round of a section.
    let mut round = 0;
    let mut from = BTreeMap::new();
    for old in needed {
        for (&section, pages) in old.pages.iter().filter(|(_, pages)| !pages.is_empty()) {
            let space = old.segment.layout.sections[section].space;
            copy.section = (space, round);
            from.insert(copy.section, (old.segment.id.to_vec(), section, pages));
            round += 1;
            copy.section(&old.segment, section, pages, go_on)?;
        }
    }
    let reference = copy.lane.finish(&mut copy.placement)?;
    let sections = (0..).zip(from.into_values());
    Ok(Rewritten {
        lane: copy.lane,
        reference,
        sections: sections
            .map(|(index, (id, section, pages))| ((id, section), (index, pages.clone())))
            .collect(),
    })
}

struct Copy {
    lane: Lane,
    placement: Placement,
    /// Space and round of the section that is being written.
    section: (u64, u32),
    chunk: u64,
    /// Where bytes are that are in the file already.
    frames: HashMap<Stored, u64>,
    /// Pages that wait until there are enough for a frame.
    numbers: Vec<u64>,
    pages: Vec<u8>,
}

impl Copy {
    fn section(
        &mut self,
        old: &Segment,
        section: usize,
        needed: &PageSet,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let (section, frames) = (&old.layout.sections[section], &old.layout.frames);
        let mut held = section.held.iter();
        let mut pages = Vec::new();
        for index in section.first..section.first + section.count {
            let count = frames.pages[index] as usize;
            let all: Vec<u64> = held.by_ref().take(count).collect();
            let live = all.iter().filter(|&&page| needed.contains(page)).count();
            if live == 0 {
                continue;
            }
            go_on()?;
            if live == count {
                self.flush()?;
                let (stored, bytes) = old.stored(index)?;
                self.frame(&all, stored, &bytes)?;
                continue;
            }
            old.read(index, &mut pages)?;
            for (page, data) in all.into_iter().zip(pages.chunks(PAGE_SIZE)) {
                if needed.contains(page) {
                    self.numbers.push(page);
                    self.pages.extend_from_slice(data);
                    if self.numbers.len() == FRAME_PAGES {
                        self.flush()?;
                    }
                }
            }
        }
        self.flush()
    }

    /// Writes the pages that wait, as a frame of their own.
    fn flush(&mut self) -> Result<()> {
        if self.numbers.is_empty() {
            return Ok(());
        }
        let (numbers, pages) = (
            std::mem::take(&mut self.numbers),
            std::mem::take(&mut self.pages),
        );
        codec::with_scratch(|scratch| {
            let codec = scratch.compress(Compression::Fast, &pages);
            let bytes = match codec {
                Codec::Raw => &pages,
                Codec::Zstd => &scratch.stored,
            };
            self.frame(&numbers, Stored::new(codec, bytes), bytes)
        })
    }

    fn frame(&mut self, pages: &[u64], stored: Stored, bytes: &[u8]) -> Result<()> {
        let twin = self.frames.get(&stored).copied();
        let offset = match twin.filter(|&at| files::has(&self.lane.file, at, bytes)) {
            Some(offset) => offset,
            None => {
                let offset = self.placement.place(stored);
                self.lane.write(bytes, offset)?;
                self.frames.insert(stored, offset);
                offset
            }
        };
        self.chunk += 1;
        let chunk = self.chunk;
        self.placement
            .add(self.section, chunk, pages, offset, stored);
        Ok(())
    }
}
