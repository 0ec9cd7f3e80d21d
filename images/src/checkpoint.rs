use std::path::PathBuf;

use crate::error::Flaw;
use crate::segment::{self, Layout, Section, Segment};
use crate::{Error, Job, PAGE_SIZE, PageSet, Result, files, manifest, pageset, proto};

/// A checkpoint that is open for reading. Its files stay readable while `prune` removes them.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: proto::Manifest,
    manifest_bytes: u64,
    pub(crate) segments: Vec<Segment>,
    pub(crate) spaces: Vec<Space>,
}

/// Where the pages of a space lie.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) space: u64,
    zero: PageSet,
    pub(crate) layers: Vec<Layer>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) segment: usize,
    /// Index into the segment's sections.
    section: usize,
    /// `None`: every page that the segment holds of the space.
    live: Option<PageSet>,
}

/// Pages that lie together on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The pages of this checkpoint in it, ascending.
    pub pages: Vec<u64>,
    pub(crate) segment: usize,
    pub(crate) index: usize,
    /// Which of the frame's pages these are: bit `i` is its `i`th. The others were written anew since.
    live: u64,
}

impl Checkpoint {
    pub(crate) fn open(job: &Job, sequence: u64) -> Result<Self> {
        let (path, manifest, manifest_bytes) = Self::open_manifest(job, sequence)?;
        let segments = manifest.segments.iter().map(|reference| {
            let path = job.segments().join(segment::file_name(&reference.id));
            Segment::open(&path, job.name(), reference)
        });
        let segments = segments.collect::<Result<Vec<_>>>()?;
        let layouts: Vec<&Layout> = segments.iter().map(|segment| &segment.layout).collect();
        let spaces = assemble(&manifest, &layouts).map_err(|flaw| Error::damaged(&path, flaw))?;
        Ok(Self {
            path,
            manifest,
            manifest_bytes,
            segments,
            spaces,
        })
    }

    /// The manifest of a checkpoint, if it is that of this checkpoint of this job.
    pub(crate) fn open_manifest(
        job: &Job,
        sequence: u64,
    ) -> Result<(PathBuf, proto::Manifest, u64)> {
        let path = job.manifest(sequence);
        let bytes = files::read(&path, manifest::LIMIT)?;
        let manifest = manifest::decode(&bytes).map_err(|flaw| Error::damaged(&path, flaw))?;
        if manifest.job != job.name() || manifest.sequence != sequence {
            let what = format!(
                "it is checkpoint {} of job {:?}",
                manifest.sequence, manifest.job
            );
            return Err(Error::damaged(&path, Flaw::at(0, what)));
        }
        Ok((path, manifest, bytes.len() as u64))
    }

    /// Its number within the job.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.manifest.sequence
    }

    /// The job's records.
    #[must_use]
    pub fn snapshot(&self) -> &proto::Snapshot {
        self.manifest
            .snapshot
            .as_ref()
            .expect("a manifest without a snapshot is refused when it is read")
    }

    /// All that the manifest says.
    #[must_use]
    pub fn manifest(&self) -> &proto::Manifest {
        &self.manifest
    }

    /// Bytes on disk that this checkpoint needs, some of which others may need too.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.manifest_bytes
            + self
                .manifest
                .segments
                .iter()
                .map(|segment| segment.length)
                .sum::<u64>()
    }

    /// The pages of a space that hold only zeros; none for an unknown space.
    #[must_use]
    pub fn zero_pages(&self, space: u64) -> PageSet {
        self.space(space)
            .map(|has| has.zero.clone())
            .unwrap_or_default()
    }

    /// Where the pages of a space lie that hold more than zeros, by segment, ascending within each; nothing for an
    /// unknown space. Each page is in one frame.
    ///
    /// # Errors
    ///
    /// None today: what could be wrong is found when the checkpoint is opened.
    pub fn frames(&self, space: u64) -> Result<Vec<Frame>> {
        Ok(self.iter(space).collect())
    }

    /// As [`frames`](Self::frames), one at a time: a space of 1 TiB has four million.
    pub fn iter(&self, space: u64) -> Frames<'_> {
        Frames {
            checkpoint: self,
            layers: self.space(space).map_or(&[], |has| &has.layers),
            current: None,
        }
    }

    /// The pages of a frame of this checkpoint, one after the other in `out`, in the order of `frame.pages`.
    ///
    /// May be called from many threads. `out` is overwritten; handing in the same one each time saves allocating.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] when the bytes are not those that were written, [`Error::Io`] when they cannot be read.
    pub fn read(&self, frame: &Frame, out: &mut Vec<u8>) -> Result<()> {
        let segment = self.segments.get(frame.segment);
        let Some(segment) =
            segment.filter(|segment| frame.index < segment.layout.frames.offset.len())
        else {
            let what = "a frame was asked for that is not in this checkpoint".into();
            return Err(Error::Damaged {
                file: self.path.clone(),
                offset: 0,
                what,
            });
        };
        segment.read(frame.index, out)?;
        // Drop what other checkpoints have of this frame.
        let mut kept = 0;
        for page in 0..out.len() / PAGE_SIZE {
            if frame.live >> page & 1 == 1 {
                if kept != page {
                    out.copy_within(page * PAGE_SIZE..(page + 1) * PAGE_SIZE, kept * PAGE_SIZE);
                }
                kept += 1;
            }
        }
        out.truncate(kept * PAGE_SIZE);
        Ok(())
    }

    fn space(&self, space: u64) -> Option<&Space> {
        self.spaces
            .binary_search_by_key(&space, |has| has.space)
            .ok()
            .map(|at| &self.spaces[at])
    }
}

/// The frames of a space, as [`Checkpoint::iter`] gives them.
#[derive(Debug)]
pub struct Frames<'a> {
    checkpoint: &'a Checkpoint,
    layers: &'a [Layer],
    current: Option<Current<'a>>,
}

/// A layer whose frames are being gone through.
struct Current<'a> {
    layer: &'a Layer,
    next: usize,
    end: usize,
    held: Box<dyn Iterator<Item = u64> + Send + 'a>,
}

impl std::fmt::Debug for Current<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("layer", &self.layer)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Iterator for Frames<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        loop {
            let Some(current) = self
                .current
                .as_mut()
                .filter(|current| current.next < current.end)
            else {
                let (layer, rest) = self.layers.split_first()?;
                self.layers = rest;
                let section = layer.section(&self.checkpoint.segments[layer.segment].layout);
                let held = Box::new(section.held.iter());
                self.current = Some(Current {
                    layer,
                    next: section.first,
                    end: section.first + section.count,
                    held,
                });
                continue;
            };
            let (segment, index) = (current.layer.segment, current.next);
            current.next += 1;
            let count = self.checkpoint.segments[segment].layout.frames.pages[index];
            let (mut pages, mut live) = (Vec::with_capacity(count as usize), 0);
            for (bit, page) in current.held.by_ref().take(count as usize).enumerate() {
                if current
                    .layer
                    .live
                    .as_ref()
                    .is_none_or(|live| live.contains(page))
                {
                    pages.push(page);
                    live |= 1 << bit;
                }
            }
            if !pages.is_empty() {
                return Some(Frame {
                    pages,
                    segment,
                    index,
                    live,
                });
            }
        }
    }
}

impl Layer {
    fn section<'a>(&self, layout: &'a Layout) -> &'a Section {
        &layout.sections[self.section]
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
        let zero = pageset::decode(&pages.zero).map_err(|what| flaw(&what))?;
        let mut seen = zero.clone();
        let mut layers = Vec::with_capacity(pages.layers.len());
        for layer in &pages.layers {
            let segment = layer.segment as usize;
            let layout = layouts
                .get(segment)
                .ok_or_else(|| flaw("a layer names a segment that is not listed"))?;
            let section = layout
                .section(space)
                .ok_or_else(|| flaw("a segment has no pages of it"))?;
            let held = &layout.sections[section].held;
            let live = layer
                .live
                .as_deref()
                .map(pageset::decode)
                .transpose()
                .map_err(|what| flaw(&what))?;
            let gives = live.as_ref().unwrap_or(held);
            if !gives.is_subset(held) {
                return Err(flaw("a segment lacks pages that it is said to hold"));
            }
            if !gives.is_disjoint(&seen) {
                return Err(flaw("a page is in two places"));
            }
            seen |= gives;
            layers.push(Layer {
                segment,
                section,
                live,
            });
        }
        spaces.push(Space {
            space,
            zero,
            layers,
        });
    }
    Ok(spaces)
}
