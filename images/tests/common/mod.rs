//! What the tests of the store share.
#![allow(dead_code)] // Each test uses a part of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use images::{
    Checkpoint, Committed, Compression, FRAME_PAGES, Job, PAGE_SIZE, Result, Store, Writer, proto,
};
use prost::Message as _;

/// The pages of each space.
pub(crate) type Memory = BTreeMap<u64, BTreeMap<u64, Vec<u8>>>;

/// What a page of a kind looks like: 0 zero, 1 text, 2 random, else mostly zero.
pub(crate) fn page(kind: u8, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE];
    match kind {
        0 => {}
        1 => bytes
            .iter_mut()
            .enumerate()
            .for_each(|(i, byte)| *byte = b"checkpoint "[(i + seed as usize) % 11]),
        2 => blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut bytes),
        _ => bytes[seed as usize % PAGE_SIZE] = 1 + seed as u8 % 255,
    }
    bytes
}

/// A job of one process (pid 7, space 1) that shares an object (space 2) mapped at 0x70000000.
pub(crate) fn snapshot() -> proto::Snapshot {
    let mapping = proto::Mapping {
        start: 0x7000_0000,
        end: 0x7100_0000,
        kind: proto::mapping::Kind::AnonymousShared.into(),
        file: 3,
        ..Default::default()
    };
    let memory = proto::AddressSpace {
        space: 1,
        mappings: vec![mapping],
        layout: None,
    };
    let process = proto::Process {
        pid: 7,
        memory: Some(memory),
        ..Default::default()
    };
    let shared = proto::SharedMemory {
        id: 3,
        size: 1 << 24,
        space: 2,
        ..Default::default()
    };
    proto::Snapshot {
        root: 7,
        processes: vec![process],
        shared: vec![shared],
        ..Default::default()
    }
}

/// A new job in a directory that goes away with the first of the pair.
pub(crate) fn job() -> (tempfile::TempDir, Job) {
    let dir = tempfile::tempdir().unwrap();
    let job = Store::create(dir.path())
        .unwrap()
        .create_job("job")
        .unwrap();
    (dir, job)
}

pub(crate) fn write(job: &Job, how: Compression, memory: &Memory) -> Result<Committed> {
    let writer = job.begin(how, None)?;
    put(&writer, memory, FRAME_PAGES)?;
    writer.commit(snapshot(), proto::Statistics::default())
}

/// Puts all of it, in chunks of `size` pages.
pub(crate) fn put(writer: &Writer, memory: &Memory, size: usize) -> Result<()> {
    for (&space, pages) in memory {
        let numbers: Vec<u64> = pages.keys().copied().collect();
        // Backwards, since the order must not matter.
        for (chunk, numbers) in numbers.chunks(size).enumerate().rev() {
            let data: Vec<u8> = numbers
                .iter()
                .flat_map(|number| &pages[number])
                .copied()
                .collect();
            writer.put(space, chunk as u64, numbers, &data)?;
        }
    }
    Ok(())
}

/// All that a checkpoint holds.
pub(crate) fn read(checkpoint: &Checkpoint) -> Result<Memory> {
    let mut memory = Memory::new();
    let mut data = Vec::new();
    for pages in &checkpoint.manifest().spaces {
        let space = memory.entry(pages.space).or_default();
        for page in checkpoint.zero_pages(pages.space) {
            space.insert(page, vec![0; PAGE_SIZE]);
        }
        for frame in checkpoint.frames(pages.space)? {
            checkpoint.read(&frame, &mut data)?;
            assert_eq!(data.len(), frame.pages.len() * PAGE_SIZE);
            for (&page, data) in frame.pages.iter().zip(data.chunks(PAGE_SIZE)) {
                assert!(
                    space.insert(page, data.to_vec()).is_none(),
                    "page {page:#x} came twice"
                );
            }
        }
    }
    Ok(memory)
}

/// Every kind of page: a space whose frame is compressed, and one whose frame is stored as it is.
pub(crate) fn sample() -> Memory {
    let own = [
        (0x10, 1, 1),
        (0x11, 1, 2),
        (0x12, 0, 0),
        (0x400, 3, 1),
        (0x7_ffff_fff0, 3, 9),
    ];
    let shared = [(0, 2, 5), (1, 0, 0), (2, 2, 6)];
    let pages = |all: &[(u64, u8, u64)]| {
        all.iter()
            .map(|&(number, kind, seed)| (number, page(kind, seed)))
            .collect()
    };
    Memory::from([(1, pages(&own)), (2, pages(&shared))])
}

/// The job's segment files.
pub(crate) fn segments(job: &Job) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(job.path().join("segments"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

pub(crate) fn manifest_path(job: &Job, sequence: u64) -> PathBuf {
    job.path().join(format!("{sequence:06}.ckpt"))
}

/// Writes a manifest by the letter of FORMAT.md, without the code under test.
pub(crate) fn write_manifest(path: &Path, features: &proto::Features, manifest: &proto::Manifest) {
    std::fs::write(path, encode_manifest(features, manifest)).unwrap();
}

pub(crate) fn encode_manifest(features: &proto::Features, manifest: &proto::Manifest) -> Vec<u8> {
    let (features, records) = (features.encode_to_vec(), manifest.encode_to_vec());
    let mut bytes = b"ckptdman".to_vec();
    bytes.extend(1u32.to_le_bytes());
    bytes.extend((features.len() as u32).to_le_bytes());
    bytes.extend((records.len() as u64).to_le_bytes());
    bytes.extend(features);
    bytes.extend(records);
    let hash = blake3::hash(&bytes);
    bytes.extend(hash.as_bytes());
    bytes
}
