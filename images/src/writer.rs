use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::Flock;
use prost::Message as _;

use crate::codec::{self, Scratch};
use crate::placement::Placement;
use crate::proto::{self, Codec};
use crate::store::TEMPORARY;
use crate::{
    Compression, Error, FRAME_PAGES, Job, PAGE_SIZE, Result, files, manifest, pageset, segment,
};

/// A checkpoint that is being written. Any number of threads may [`put`](Self::put) pages.
///
/// Nothing of it counts until [`commit`](Self::commit); dropping it removes what it wrote.
#[derive(Debug)]
pub struct Writer {
    job: Job,
    sequence: u64,
    parent: u64,
    compression: Compression,
    id: segment::Id,
    file: File,
    temporary: PathBuf,
    /// The most bytes that a file may have (RLIMIT_FSIZE).
    limit: u64,
    state: Mutex<Placement>,
    /// What to remove when this is dropped, newest last.
    garbage: Vec<PathBuf>,
    _lock: Flock<File>,
}

/// A checkpoint that is safely on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its number within the job.
    pub sequence: u64,
    /// Bytes written for it, manifest and segment.
    pub bytes: u64,
    /// Pages with content in it; those of zeros take no room.
    pub pages: u64,
}

impl Job {
    /// Begins the job's next checkpoint, and keeps other writers and [`prune`](Self::prune) away until it is done.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] when another process is at it, [`Error::Io`].
    pub fn begin(&self, compression: Compression) -> Result<Writer> {
        let lock = self.lock()?;
        let parent = self.sequences()?.last().copied().unwrap_or(0);
        let id = files::random_id()?;
        let temporary = self.segments().join(segment::file_name(&id) + TEMPORARY);
        let file = files::create(&temporary)?;
        Ok(Writer {
            job: self.clone(),
            sequence: parent + 1,
            parent,
            compression,
            id,
            file,
            garbage: vec![temporary.clone()],
            temporary,
            limit: files::size_limit(),
            state: Mutex::new(Placement::default()),
            _lock: lock,
        })
    }
}

impl Writer {
    /// The number that the checkpoint will have.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Bytes of pages written so far, as stored.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.state().end - segment::HEADER as u64
    }

    /// Stores some pages of a space: at most [`FRAME_PAGES`] page numbers, ascending, and the pages themselves one
    /// after the other in `data`.
    ///
    /// Chunks of a space may come in any order from any thread, as long as all pages of chunk `k` lie below those of
    /// `k + 1`. Pages of zeros are noted and take no room.
    ///
    /// # Errors
    ///
    /// [`Error::Pages`] where these rules are broken, [`Error::Io`] when the disk does not take it. After either the
    /// checkpoint cannot be committed.
    pub fn put(&self, space: u64, chunk: u64, pages: &[u64], data: &[u8]) -> Result<()> {
        let done = codec::with_scratch(|scratch| self.store(scratch, space, chunk, pages, data));
        if done.is_err() {
            self.state().failed = true;
        }
        done
    }

    fn store(
        &self,
        scratch: &mut Scratch,
        space: u64,
        chunk: u64,
        pages: &[u64],
        data: &[u8],
    ) -> Result<()> {
        check(pages, data).map_err(|why| Error::Pages { space, why })?;
        let is_zero = |index: usize| codec::is_zero(&data[index * PAGE_SIZE..][..PAGE_SIZE]);
        let (zero, held): (Vec<usize>, Vec<usize>) =
            (0..pages.len()).partition(|&index| is_zero(index));

        let mut kept = std::mem::take(&mut scratch.pages);
        let content = if zero.is_empty() {
            data
        } else {
            kept.clear();
            for &index in &held {
                kept.extend_from_slice(&data[index * PAGE_SIZE..][..PAGE_SIZE]);
            }
            &kept
        };
        let codec = scratch.compress(self.compression, content);
        let stored = if codec == Codec::Raw {
            content
        } else {
            &scratch.stored
        };
        let crc = crc32c::crc32c(stored);
        let numbers = |indices: &[usize]| {
            indices
                .iter()
                .map(|&index| pages[index])
                .collect::<Vec<_>>()
        };
        let (zero, held) = (numbers(&zero), numbers(&held));
        let offset =
            self.state()
                .add(space, chunk, &zero, &held, codec, stored.len() as u32, crc)?;
        files::check_size(offset + stored.len() as u64, self.limit)
            .and_then(|()| self.file.write_all_at(stored, offset))
            .map_err(Error::io("write", &self.temporary))?;
        scratch.pages = kept;
        Ok(())
    }

    /// Makes the checkpoint count: once this returns it is on disk, whole, and the job's newest.
    ///
    /// Sets the pages, bytes and compression of `statistics`; the rest is the caller's.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] after a failed [`put`](Self::put), [`Error::Pages`] when chunks overlap,
    /// [`Error::TooLarge`], [`Error::Io`]. The store is then as it was before.
    pub fn commit(
        mut self,
        snapshot: proto::Snapshot,
        mut statistics: proto::Statistics,
    ) -> Result<Committed> {
        let mut state = std::mem::take(&mut *self.state());
        if state.failed {
            return Err(Error::Incomplete {
                job: self.job.name().into(),
                sequence: self.sequence,
            });
        }
        let (footer, spaces) = state.layout()?;
        let pages = state.pages;
        let mut segments = Vec::new();
        if pages > 0 {
            segments.push(self.finish_segment(&footer.encode_to_vec(), state.end)?);
        }
        let segment_bytes = segments.iter().map(|segment| segment.length).sum();

        statistics.pages = pages;
        statistics.bytes = segment_bytes;
        statistics.compression = self.compression.name().into();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let bytes = manifest::encode(
            &proto::Features::default(),
            &proto::Manifest {
                job: self.job.name().into(),
                sequence: self.sequence,
                version: env!("CARGO_PKG_VERSION").into(),
                parent: self.parent,
                created_at: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
                snapshot: Some(snapshot),
                spaces,
                segments,
                statistics: Some(statistics),
            },
        )?;
        let path = self.job.manifest(self.sequence);
        let temporary = path.with_extension("ckpt.tmp");
        // Of an earlier writer that was killed; the job is ours now.
        let _ = std::fs::remove_file(&temporary);
        let mut file = files::create(&temporary)?;
        self.garbage.push(temporary.clone());
        files::check_size(bytes.len() as u64, self.limit)
            .and_then(|()| file.write_all(&bytes))
            .map_err(Error::io("write", &temporary))?;
        file.sync_all().map_err(Error::io("sync", &temporary))?;
        files::rename(&temporary, &path)?;
        self.garbage.push(path);
        files::sync_dir(self.job.path())?;

        // From here on nothing of it is garbage but the temporary segment of a checkpoint without pages.
        self.garbage
            .retain(|path| pages == 0 && *path == self.temporary);
        Ok(Committed {
            sequence: self.sequence,
            bytes: segment_bytes + bytes.len() as u64,
            pages,
        })
    }

    /// Completes the segment and gives it its name.
    fn finish_segment(&mut self, footer: &[u8], end: u64) -> Result<proto::SegmentReference> {
        if footer.len() > segment::FOOTER_LIMIT {
            return Err(Error::TooLarge {
                bytes: footer.len(),
                limit: segment::FOOTER_LIMIT,
            });
        }
        let header = segment::header(&self.id, self.job.name());
        let hash = segment::hash(&header, footer);
        let tail = [footer, &segment::trailer(footer, &hash)].concat();
        let file = &self.file;
        let length = end + tail.len() as u64;
        files::check_size(length, self.limit)
            .and_then(|()| file.write_all_at(&tail, end))
            .and_then(|()| file.write_all_at(&header, 0))
            .map_err(Error::io("write", &self.temporary))?;
        file.sync_all()
            .map_err(Error::io("sync", &self.temporary))?;
        let path = self.job.segments().join(segment::file_name(&self.id));
        files::rename(&self.temporary, &path)?;
        self.garbage.push(path);
        files::sync_dir(&self.job.segments())?;
        Ok(proto::SegmentReference {
            id: self.id.into(),
            length,
            hash: hash.as_bytes().to_vec(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Placement> {
        // A thread that panicked has left numbers behind that are still true.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The manifest goes before what it names.
        for path in self.garbage.iter().rev() {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn check(pages: &[u64], data: &[u8]) -> Result<(), String> {
    if pages.len() > FRAME_PAGES || data.len() != pages.len() * PAGE_SIZE {
        return Err(format!(
            "{} bytes were given for {} pages",
            data.len(),
            pages.len()
        ));
    }
    if pages.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err("the page numbers do not ascend".into());
    }
    match pages.last() {
        Some(&last) if last >= pageset::PAGE_LIMIT => Err(format!("there is no page {last:#x}")),
        _ => Ok(()),
    }
}
