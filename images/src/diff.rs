//! What changed from one checkpoint to another.

use std::collections::HashMap;

use crate::space::Frame;
use crate::{Checkpoint, PAGE_SIZE, PageSet, Result, Where};

/// How the pages of a space differ between two checkpoints.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Difference {
    /// In both, with different contents.
    pub changed: PageSet,
    /// In the newer one only.
    pub new: PageSet,
    /// In the older one only.
    pub gone: PageSet,
}

impl Checkpoint {
    /// How the pages of a space differ from those of an `older` checkpoint of the same job. Pages that do not lie in
    /// the same place are read and compared.
    ///
    /// # Errors
    ///
    /// As of [`read`](Self::read).
    pub fn diff(&self, older: &Self, space: u64) -> Result<Difference> {
        let (before, now) = (older.pages(space), self.pages(space));
        let mut difference = Difference {
            new: &now - &before,
            gone: &before - &now,
            changed: PageSet::new(),
        };
        let (Some(was), Some(is)) = (older.space(space), self.space(space)) else {
            return Ok(difference);
        };
        let mut unknown = before & now;
        unknown -= &was.zero & &is.zero;
        // What lies in the same place is the same.
        let key = |checkpoint: &Self, segment: usize, section: usize| {
            (checkpoint.segments[segment].id, section)
        };
        let layers = was.layers.iter().zip(was.live());
        let places: HashMap<_, _> = layers
            .map(|(layer, live)| (key(older, layer.segment, layer.section), live))
            .collect();
        for (layer, live) in is.layers.iter().zip(is.live()) {
            if let Some(old) = places.get(&key(self, layer.segment, layer.section)) {
                unknown -= &**live & &***old;
            }
        }
        // Content cannot have become zeros without having changed.
        difference.changed = &unknown & &(&was.zero | &is.zero);
        unknown -= &difference.changed;

        let (mut new, mut old) = (Vec::new(), Vec::new());
        let mut last: Option<Frame> = None;
        for frame in self.iter(space) {
            if !frame.pages.iter().any(|&page| unknown.contains(page)) {
                continue;
            }
            self.read(&frame, &mut new)?;
            for (&page, data) in frame.pages.iter().zip(new.chunks(PAGE_SIZE)) {
                if !unknown.contains(page) {
                    continue;
                }
                let found = |frame: &Frame| frame.pages.binary_search(&page).ok();
                let mut at = last.as_ref().and_then(found);
                if at.is_none()
                    && let Some(Where::Frame(frame)) = older.locate(space, page)
                {
                    older.read(&frame, &mut old)?;
                    at = found(&frame);
                    last = Some(frame);
                }
                if at.is_none_or(|at| old[at * PAGE_SIZE..][..PAGE_SIZE] != *data) {
                    difference.changed.insert(page);
                }
            }
        }
        Ok(difference)
    }
}
