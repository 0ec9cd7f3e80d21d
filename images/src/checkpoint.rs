use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Flaw;
use crate::segment::{Layout, Segment, Segments};
use crate::space::{Frame, Frames, Space, assemble};
use crate::{Error, Job, PAGE_SIZE, PageSet, Result, files, manifest, proto};

/// A checkpoint that is open for reading. Its files stay readable while `prune` removes them; a clone costs nothing.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: Arc<Path>,
    manifest: Arc<proto::Manifest>,
    manifest_bytes: u64,
    pub(crate) segments: Arc<[Arc<Segment>]>,
    pub(crate) spaces: Arc<[Space]>,
}

/// Where a page is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// It holds zeros only.
    Zero,
    /// In this frame, with others.
    Frame(Frame),
}

impl Checkpoint {
    pub(crate) fn open(job: &Job, sequence: u64) -> Result<Self> {
        Self::open_with(job, sequence, &mut Segments::default())
    }

    /// As [`open`](Self::open), with segments that may be open already.
    pub(crate) fn open_with(job: &Job, sequence: u64, open: &mut Segments) -> Result<Self> {
        let (path, mut manifest, mut manifest_bytes) = Self::open_manifest(job, sequence)?;
        let segments = loop {
            let references = manifest.segments.iter();
            let segments = references.map(|reference| open.get(job, reference));
            match segments.collect::<Result<Arc<[_]>>>() {
                Ok(segments) => break segments,
                Err(error) => {
                    // Segments may have been rewritten since; then the manifest was too.
                    let (_, again, bytes) = Self::open_manifest(job, sequence)?;
                    if again == manifest {
                        return Err(error);
                    }
                    (manifest, manifest_bytes) = (again, bytes);
                }
            }
        };
        let layouts: Vec<&Layout> = segments.iter().map(|segment| &segment.layout).collect();
        let spaces = assemble(&manifest, &layouts).map_err(|flaw| Error::damaged(&path, flaw))?;
        Ok(Self {
            path: path.into(),
            manifest: Arc::new(manifest),
            manifest_bytes,
            segments,
            spaces: spaces.into(),
        })
    }

    /// This checkpoint, for a writer that holds the job's lock: with segments that are still there.
    pub(crate) fn for_writing(&self, job: &Job) -> Result<Self> {
        let gone = || Error::NoBase {
            job: job.name().into(),
            sequence: self.sequence(),
        };
        let ours = job.manifest(self.sequence()) == *self.path;
        let there = |segment: &Arc<Segment>| segment.path.exists();
        if ours && self.segments.iter().all(there) {
            return Ok(self.clone());
        }
        // Segments may have been rewritten since it was opened; that changes nothing else.
        match Self::open(job, self.sequence()) {
            Ok(again) if again.manifest.created_at == self.manifest.created_at => Ok(again),
            Err(error) if error.is_damage() => Err(error),
            _ => Err(gone()),
        }
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

    /// Its manifest, for messages about what it says.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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

    /// The pages of a space, with content or of zeros; none for an unknown space.
    #[must_use]
    pub fn pages(&self, space: u64) -> PageSet {
        self.space(space)
            .map(|has| has.content() | &has.zero)
            .unwrap_or_default()
    }

    /// The pages of a space that hold only zeros; none for an unknown space.
    #[must_use]
    pub fn zero_pages(&self, space: u64) -> PageSet {
        self.space(space)
            .map(|has| has.zero.clone())
            .unwrap_or_default()
    }

    /// How many pages hold more than zeros, in all spaces together.
    #[must_use]
    pub fn content(&self) -> u64 {
        self.spaces.iter().map(|has| has.content().len()).sum()
    }

    /// Where the pages of a space lie that hold more than zeros, by section, ascending within each; nothing for an
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
        Frames::new(&self.segments, self.space(space))
    }

    /// Where a page is; `None` when the checkpoint does not have it. Takes a microsecond or so; any number of threads
    /// may ask.
    #[must_use]
    pub fn locate(&self, space: u64, page: u64) -> Option<Where> {
        if self.space(space)?.zero.contains(page) {
            return Some(Where::Zero);
        }
        self.frame(space, page, |_, _| true).map(Where::Frame)
    }

    /// The frame that has a page, where it is one that is `wanted`.
    pub(crate) fn frame(
        &self,
        space: u64,
        page: u64,
        wanted: impl FnOnce(&proto::FrameTable, usize) -> bool,
    ) -> Option<Frame> {
        let has = self.space(space)?;
        let at = has.layer(page)?;
        let layer = &has.layers[at];
        let layout = &self.segments[layer.segment].layout;
        let (section, frames) = (&layout.sections[layer.section], &layout.frames);
        let (index, first) = section.frame(page);
        wanted(frames, index).then(|| {
            let all = section.pages(first, frames.pages[index] as usize);
            Frame::new(all, has.part(at), layer.segment, index)
        })
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
                file: self.path.to_path_buf(),
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

    pub(crate) fn space(&self, space: u64) -> Option<&Space> {
        self.spaces
            .binary_search_by_key(&space, |has| has.space)
            .ok()
            .map(|at| &self.spaces[at])
    }
}
