//! Where the pages of one space of a checkpoint lie.

use std::sync::{Arc, OnceLock};

use crate::error::Flaw;
use crate::segment::{Layout, Segment};
use crate::{PageSet, pageset, proto};

/// Where the pages of a space lie.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) space: u64,
    pub(crate) zero: PageSet,
    absent: PageSet,
    /// From the newest to the oldest: the first that holds a page gives it.
    pub(crate) layers: Vec<Layer>,
    live: OnceLock<Vec<Arc<PageSet>>>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) segment: usize,
    /// Index into the segment's sections.
    pub(crate) section: usize,
    pub(crate) held: Arc<PageSet>,
}

impl Space {
    /// Which pages each layer gives. Costs a few passes over all sets the first time.
    pub(crate) fn live(&self) -> &[Arc<PageSet>] {
        self.live.get_or_init(|| {
            let mut shadow = &self.zero | &self.absent;
            let mut live = Vec::with_capacity(self.layers.len());
            for (index, layer) in self.layers.iter().enumerate() {
                let held = &layer.held;
                if held.is_disjoint(&shadow) {
                    live.push(Arc::clone(held));
                } else {
                    live.push(Arc::new(&**held - &shadow));
                }
                if index + 1 < self.layers.len() {
                    shadow |= &**held;
                }
            }
            live
        })
    }

    /// All pages with content.
    pub(crate) fn content(&self) -> PageSet {
        let mut pages = PageSet::new();
        for layer in &self.layers {
            pages |= &*layer.held;
        }
        pages - &self.zero - &self.absent
    }

    /// The layer that gives a page; `None` where it is zero or not there.
    pub(crate) fn layer(&self, page: u64) -> Option<usize> {
        if self.zero.contains(page) || self.absent.contains(page) {
            return None;
        }
        self.layers
            .iter()
            .position(|layer| layer.held.contains(page))
    }

    /// The pages that a layer gives, where it holds others too.
    pub(crate) fn part(&self, layer: usize) -> Option<&PageSet> {
        let live = &self.live()[layer];
        (!Arc::ptr_eq(live, &self.layers[layer].held)).then_some(live)
    }
}

/// Pages that lie together on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The pages of this checkpoint in it, ascending.
    pub pages: Vec<u64>,
    pub(crate) segment: usize,
    pub(crate) index: usize,
    /// Which of the frame's pages these are: bit `i` is its `i`th. The others were written anew since, or are gone.
    pub(crate) live: u64,
}

/// The frames of a space, as [`Checkpoint::iter`](crate::Checkpoint::iter) gives them.
#[derive(Debug)]
pub struct Frames<'a> {
    segments: &'a [Arc<Segment>],
    space: Option<&'a Space>,
    /// The next layer.
    layer: usize,
    current: Option<Current<'a>>,
}

/// A layer whose frames are being gone through.
struct Current<'a> {
    layout: &'a Layout,
    segment: usize,
    next: usize,
    end: usize,
    held: roaring::treemap::Iter<'a>,
    live: Option<&'a PageSet>,
}

impl std::fmt::Debug for Current<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("segment", &self.segment)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl<'a> Frames<'a> {
    pub(crate) fn new(segments: &'a [Arc<Segment>], space: Option<&'a Space>) -> Self {
        Self {
            segments,
            space,
            layer: 0,
            current: None,
        }
    }

    fn next_layer(&mut self) -> Option<Current<'a>> {
        let space = self.space?;
        let layer = space.layers.get(self.layer)?;
        let layout = &self.segments[layer.segment].layout;
        let section = &layout.sections[layer.section];
        let live = space.part(self.layer);
        self.layer += 1;
        Some(Current {
            layout,
            segment: layer.segment,
            next: section.first,
            end: section.first + section.count,
            held: layer.held.iter(),
            live,
        })
    }
}

impl Iterator for Frames<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        loop {
            let Some(current) = self.current.as_mut().filter(|has| has.next < has.end) else {
                self.current = Some(self.next_layer()?);
                continue;
            };
            let index = current.next;
            current.next += 1;
            let count = current.layout.frames.pages[index] as usize;
            let pages = current.held.by_ref().take(count);
            let frame = Frame::new(pages, current.live, current.segment, index);
            if !frame.pages.is_empty() {
                return Some(frame);
            }
        }
    }
}

impl Frame {
    /// What tells it from all others of its checkpoint.
    #[must_use]
    pub fn key(&self) -> u64 {
        (self.segment as u64) << 32 | self.index as u64
    }

    /// The frame that has `pages`, of which the checkpoint uses those in `live`; all, where that is `None`.
    pub(crate) fn new(
        all: impl Iterator<Item = u64>,
        among: Option<&PageSet>,
        segment: usize,
        index: usize,
    ) -> Self {
        let (mut pages, mut live) = (Vec::with_capacity(all.size_hint().0), 0);
        for (bit, page) in all.enumerate() {
            if among.is_none_or(|among| among.contains(page)) {
                pages.push(page);
                live |= 1 << bit;
            }
        }
        Self {
            pages,
            segment,
            index,
            live,
        }
    }
}

/// Brings together what the manifest and the footers of its segments say, and checks that they agree.
pub(crate) fn assemble(
    manifest: &proto::Manifest,
    layouts: &[&Layout],
) -> Result<Vec<Space>, Flaw> {
    let mut spaces = Vec::with_capacity(manifest.spaces.len());
    for pages in &manifest.spaces {
        let space = pages.space;
        let flaw = |what: &str| Flaw::at(0, format!("space {space}: {what}"));
        let set = |bytes: &[u8]| pageset::decode(bytes).map_err(|what| flaw(&what));
        let (zero, absent) = (set(&pages.zero)?, set(&pages.absent)?);
        if !zero.is_disjoint(&absent) {
            return Err(flaw("a page is there and is not"));
        }
        let mut layers: Vec<Layer> = Vec::with_capacity(pages.layers.len());
        for layer in &pages.layers {
            let (segment, section) = (layer.segment as usize, layer.section as usize);
            let layout = layouts
                .get(segment)
                .ok_or_else(|| flaw("a layer names a segment that is not listed"))?;
            let has = layout
                .sections
                .get(section)
                .filter(|section| section.space == space)
                .ok_or_else(|| flaw("a segment has no such section of it"))?;
            layers.push(Layer {
                segment,
                section,
                held: Arc::clone(&has.held),
            });
        }
        let mut named: Vec<_> = layers
            .iter()
            .map(|has| (has.segment, has.section))
            .collect();
        named.sort_unstable();
        if named.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(flaw("a layer is named twice"));
        }
        spaces.push(Space {
            space,
            zero,
            absent,
            layers,
            live: OnceLock::new(),
        });
    }
    Ok(spaces)
}
