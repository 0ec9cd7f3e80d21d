//! What the spaces of a checkpoint that is being written hold, and what its manifest says of it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::checkpoint::Checkpoint;
use crate::placement::Placement;
use crate::proto;
use crate::{Error, PageSet, Result, pageset};

/// The pages of all spaces, wherever they lie.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    spaces: BTreeMap<u64, Space>,
}

#[derive(Debug, Default)]
struct Space {
    /// Put in this round.
    given: PageSet,
    /// Put in earlier rounds.
    before: PageSet,
    /// Put, and with content when they were put last.
    held: PageSet,
    /// Put, and all zeros when they were put last.
    zero: PageSet,
    /// As the base has them, where they were not put.
    kept: PageSet,
}

/// What a manifest says of pages.
#[derive(Debug, Default)]
pub(crate) struct Map {
    pub(crate) spaces: Vec<proto::SpacePages>,
    /// Which of the placements are named, in the order in which `spaces` numbers them.
    pub(crate) own: Vec<usize>,
    /// Which of the base's segments are, numbered after those.
    pub(crate) base: Vec<usize>,
    /// Pages with content that were put.
    pub(crate) put: u64,
    /// Pages with content that were kept.
    pub(crate) kept: u64,
}

impl Contents {
    /// Whether none of these pages, ascending, was put in an earlier round: then they may be kept as the base has them,
    /// since nothing lies above.
    pub(crate) fn fresh(&self, space: u64, pages: &[u64]) -> bool {
        self.spaces.get(&space).is_none_or(|has| {
            has.before.is_empty() || !pages.iter().any(|&page| has.before.contains(page))
        })
    }

    /// Notes pages that were put, each list ascending. Those of `held` are as the base has them when they are `kept`.
    pub(crate) fn put(&mut self, space: u64, zero: &[u64], held: &[u64], kept: bool) -> Result<()> {
        let has = self.spaces.entry(space).or_default();
        let new = pageset::insert(&mut has.given, zero) + pageset::insert(&mut has.given, held);
        if new != (zero.len() + held.len()) as u64 {
            return Err(fail(space, "a page was given twice"));
        }
        pageset::insert(&mut has.zero, zero);
        pageset::remove(&mut has.held, zero);
        if kept {
            pageset::insert(&mut has.kept, held);
        } else {
            pageset::insert(&mut has.held, held);
            pageset::remove(&mut has.zero, held);
        }
        Ok(())
    }

    pub(crate) fn keep(&mut self, space: u64, pages: PageSet) {
        self.spaces.entry(space).or_default().kept |= pages;
    }

    pub(crate) fn forget(&mut self, space: u64, pages: &PageSet) {
        if let Some(has) = self.spaces.get_mut(&space) {
            for set in [&mut has.held, &mut has.zero, &mut has.kept] {
                *set -= pages;
            }
        }
    }

    pub(crate) fn next_round(&mut self) {
        for has in self.spaces.values_mut() {
            has.before |= std::mem::take(&mut has.given);
        }
    }

    /// Says for every page where it lies: in the newest section that holds it, or where the base has it.
    pub(crate) fn map(
        mut self,
        placements: &[Placement],
        base: Option<&Checkpoint>,
    ) -> Result<Map> {
        // Every layer first names its segment by the index that it has in `placements`, or, after all of those, in the
        // base; they are numbered anew once it is known which are needed.
        let mut map = Map::default();
        for (space, has) in &mut self.spaces {
            has.kept -= &has.held;
            has.kept -= &has.zero;
            let pages = has.lay(*space, placements, base)?;
            if !pages.layers.is_empty() || !pages.zero.is_empty() {
                map.put += has.held.len();
                map.kept += has.kept.len();
                map.spaces.push(pages);
            }
        }
        let layers = || map.spaces.iter().flat_map(|space| &space.layers);
        let mut named: Vec<u32> = layers().map(|layer| layer.segment).collect();
        named.sort_unstable();
        named.dedup();
        for layer in map.spaces.iter_mut().flat_map(|space| &mut space.layers) {
            layer.segment = named.partition_point(|&old| old < layer.segment) as u32;
        }
        let (own, of_base): (Vec<_>, Vec<_>) = named
            .into_iter()
            .map(|segment| segment as usize)
            .partition(|&segment| segment < placements.len());
        map.own = own;
        map.base = of_base
            .into_iter()
            .map(|segment| segment - placements.len())
            .collect();
        Ok(map)
    }
}

impl Space {
    /// The layers that hold any of its pages, newest first.
    fn lay(
        &mut self,
        space: u64,
        placements: &[Placement],
        base: Option<&Checkpoint>,
    ) -> Result<proto::SpacePages> {
        let mut own = Vec::new();
        for (segment, placement) in (0..).zip(placements) {
            for (section, (&(of, round), has)) in (0..).zip(&placement.sections) {
                if of == space {
                    own.push((round, proto::Layer { segment, section }, &has.held));
                }
            }
        }
        own.sort_by_key(|&(round, ..)| Reverse(round));
        // Pages that some layer above or the set of zeros answers for; what layers hold in all.
        let mut shadow = self.zero.clone();
        let mut union = PageSet::new();
        let mut layers = Vec::new();
        for (_, layer, held) in own {
            if !(held & &self.held).is_subset(&shadow) {
                layers.push(layer);
                union |= held;
            }
            shadow |= held;
        }
        if let Some(base) = base.and_then(|base| base.space(space)) {
            let zero = &self.kept & &base.zero;
            self.kept -= &zero;
            self.zero |= zero;
            if !self.kept.is_disjoint(&union) {
                let why = "a page was put, forgotten, and kept as the base has it";
                return Err(fail(space, why));
            }
            for (layer, live) in base.layers.iter().zip(base.live()) {
                if !live.is_disjoint(&self.kept) {
                    layers.push(proto::Layer {
                        segment: (placements.len() + layer.segment) as u32,
                        section: layer.section as u32,
                    });
                    union |= &*layer.held;
                }
            }
        }
        let absent = union - &self.held - &self.kept - &self.zero;
        Ok(proto::SpacePages {
            space,
            layers,
            zero: pageset::encode(&self.zero),
            absent: pageset::encode(&absent),
        })
    }
}

fn fail(space: u64, why: &str) -> Error {
    Error::Pages {
        space,
        why: why.into(),
    }
}
