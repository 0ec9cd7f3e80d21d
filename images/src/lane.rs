//! A segment file that is being written.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use prost::Message as _;

use crate::placement::Placement;
use crate::store::TEMPORARY;
use crate::{Error, Job, Result, files, proto, segment};

/// A segment file that is being written, under a temporary name.
#[derive(Debug)]
pub(crate) struct Lane {
    id: segment::Id,
    pub(crate) file: File,
    pub(crate) temporary: PathBuf,
    /// The name that it will have.
    pub(crate) path: PathBuf,
    header: [u8; segment::HEADER],
    /// The most bytes that a file may have (RLIMIT_FSIZE).
    limit: u64,
}

impl Lane {
    pub(crate) fn create(job: &Job) -> Result<Self> {
        let id = files::random_id()?;
        let name = segment::file_name(&id);
        let temporary = job.segments().join(name.clone() + TEMPORARY);
        Ok(Self {
            id,
            file: files::create(&temporary)?,
            temporary,
            path: job.segments().join(name),
            header: segment::header(&id, job.name()),
            limit: files::size_limit(),
        })
    }

    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        files::check_size(offset + bytes.len() as u64, self.limit)
            .and_then(|()| self.file.write_all_at(bytes, offset))
            .map_err(Error::io("write", &self.temporary))
    }

    /// Completes the file and syncs it. It counts once it has its name.
    pub(crate) fn finish(&self, placement: &mut Placement) -> Result<proto::SegmentReference> {
        let footer = placement.footer()?.encode_to_vec();
        if footer.len() > segment::FOOTER_LIMIT {
            return Err(Error::TooLarge {
                bytes: footer.len(),
                limit: segment::FOOTER_LIMIT,
            });
        }
        let hash = segment::hash(&self.header, &footer);
        let tail = [&footer[..], &segment::trailer(&footer, &hash)].concat();
        self.write(&tail, placement.end)?;
        self.write(&self.header, 0)?;
        self.file
            .sync_all()
            .map_err(Error::io("sync", &self.temporary))?;
        Ok(proto::SegmentReference {
            id: self.id.into(),
            length: placement.end + tail.len() as u64,
            hash: hash.as_bytes().to_vec(),
        })
    }
}
