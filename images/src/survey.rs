//! Which segments are worth rewriting.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::rewrite::Needed;
use crate::segment::Segments;
use crate::{Checkpoint, Job, PageSet, Result};

/// Dead bytes at which a segment is rewritten, as a part of its frames: at one half, no more is written than is freed,
/// and a job never takes more than twice the room that it needs.
const DEAD_PART: u64 = 2;

/// Dead bytes from which on rewriting is worth its trouble, as a part of the bytes of all segments.
const WORTH_PART: u64 = 10;

/// Segments of one checkpoint at which some are put together: each takes an open file and some room in a manifest.
const MANY: usize = 64;
/// Segments of one checkpoint that are left then.
const FEW: usize = 32;

/// Pages, in bytes, that one new segment takes at most, so that there is always an end in sight and never much room
/// taken that is not there yet.
const BATCH: u64 = 1 << 30;

/// What the checkpoints of a job need of its segments.
pub(crate) struct Survey {
    pub(crate) segments: Vec<Use>,
    /// The segments of the checkpoint that names the most.
    widest: Vec<usize>,
}

pub(crate) struct Use {
    needed: Needed,
    /// Bytes of frames, and about how many of them are needed.
    bytes: u64,
    live: u64,
}

impl Use {
    pub(crate) fn dead(&self) -> u64 {
        self.bytes - self.live
    }
}

impl Survey {
    /// `None` when a checkpoint cannot be read. The job need not be locked: what is found is looked at again.
    pub(crate) fn of(job: &Job) -> Result<Option<Self>> {
        let mut open = Segments::default();
        let mut uses: BTreeMap<Vec<u8>, Needed> = BTreeMap::new();
        let mut widest: Vec<Vec<u8>> = Vec::new();
        for sequence in job.sequences()? {
            let checkpoint = match Checkpoint::open_with(job, sequence, &mut open) {
                Ok(checkpoint) => checkpoint,
                Err(error) if error.is_damage() => return Ok(None),
                Err(_) if !job.manifest(sequence).exists() => continue,
                Err(error) => return Err(error),
            };
            for space in checkpoint.spaces.iter() {
                for (layer, live) in space.layers.iter().zip(space.live()) {
                    let segment = &checkpoint.segments[layer.segment];
                    let needed = uses.entry(segment.id.to_vec()).or_insert_with(|| Needed {
                        segment: Arc::clone(segment),
                        pages: BTreeMap::new(),
                    });
                    *needed.pages.entry(layer.section).or_default() |= &**live;
                }
            }
            if checkpoint.segments.len() > widest.len() {
                let ids = checkpoint
                    .segments
                    .iter()
                    .map(|segment| segment.id.to_vec());
                widest = ids.collect();
            }
        }
        let ids: Vec<Vec<u8>> = uses.keys().cloned().collect();
        let segments = uses.into_values().map(|needed| {
            let frames = &needed.segment.layout.frames;
            let bytes = frames.length.iter().map(|&length| u64::from(length)).sum();
            let all: u64 = frames.pages.iter().map(|&pages| u64::from(pages)).sum();
            let pages: u64 = needed.pages.values().map(PageSet::len).sum();
            // Frames that share their place count twice on both sides.
            let live = (u128::from(bytes) * u128::from(pages) / u128::from(all.max(1))) as u64;
            Use {
                needed,
                bytes,
                live,
            }
        });
        Ok(Some(Self {
            segments: segments.collect(),
            widest: widest
                .iter()
                .filter_map(|id| ids.binary_search(id).ok())
                .collect(),
        }))
    }

    /// Which segments should go, the smallest first.
    pub(crate) fn choose(&self) -> Vec<usize> {
        let live = |&index: &usize| self.segments[index].live;
        let mut chosen: BTreeSet<usize> = (0..self.segments.len())
            .filter(|&index| {
                let has = &self.segments[index];
                has.dead() * DEAD_PART > has.bytes
            })
            .collect();
        let dead: u64 = chosen
            .iter()
            .map(|&index| self.segments[index].dead())
            .sum();
        let all: u64 = self.segments.iter().map(|has| has.bytes).sum();
        if dead * WORTH_PART < all {
            chosen.clear();
        }
        if self.widest.len() > MANY {
            let mut small = self.widest.clone();
            small.sort_by_key(live);
            chosen.extend(&small[..small.len() - FEW]);
        }
        let mut chosen: Vec<usize> = chosen.into_iter().collect();
        chosen.sort_by_key(live);
        chosen
    }

    /// Those that come next.
    pub(crate) fn batch(mut self) -> Vec<Needed> {
        let mut room = BATCH;
        let mut batch = BTreeSet::new();
        for index in self.choose() {
            let live = self.segments[index].live;
            if !batch.is_empty() && live > room {
                break;
            }
            room = room.saturating_sub(live);
            batch.insert(index);
        }
        let mut index = 0;
        self.segments.retain(|_| {
            index += 1;
            batch.contains(&(index - 1))
        });
        self.segments.into_iter().map(|has| has.needed).collect()
    }
}
