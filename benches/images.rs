//! Frames, checksums and manifests.
#![allow(missing_docs, clippy::unwrap_used)] // Criterion's macros; a benchmark that fails may stop.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use images::proto::{self, Codec};
use images::{Compression, FRAME_PAGES, Job, PAGE_SIZE, Store};

const FRAME_BYTES: usize = FRAME_PAGES * PAGE_SIZE;

/// What pages hold, from hopeless to compress to easy.
fn contents() -> [(&'static str, Vec<u8>); 3] {
    let mut noise = vec![0; FRAME_BYTES];
    blake3::Hasher::new()
        .update(b"noise")
        .finalize_xof()
        .fill(&mut noise);
    // Doubles that differ little from one to the next, as arrays of numeric programs do.
    let numbers = (0..FRAME_BYTES / 8)
        .flat_map(|i| (1.0 + i as f64 / 1024.0).to_le_bytes())
        .collect();
    [
        ("noise", noise),
        ("numbers", numbers),
        ("zeros", vec![0; FRAME_BYTES]),
    ]
}

/// A store in memory where there is room for one, so that no disk is measured.
fn store() -> (tempfile::TempDir, Job) {
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let job = Store::create(dir.path())
        .unwrap()
        .create_job("bench")
        .unwrap();
    (dir, job)
}

fn encode(c: &mut Criterion) {
    const FRAMES: u64 = 64;
    let (_dir, job) = store();
    let mut group = c.benchmark_group("frame encode");
    group
        .throughput(Throughput::Bytes(FRAMES * FRAME_BYTES as u64))
        .sample_size(20);
    for (name, data) in contents() {
        for how in [Compression::None, Compression::Fast] {
            group.bench_function(format!("{name}/{}", how.name()), |b| {
                b.iter_batched(
                    || job.begin(how, None).unwrap(),
                    |writer| {
                        for chunk in 0..FRAMES {
                            let first = chunk * FRAME_PAGES as u64;
                            let pages: Vec<u64> = (first..first + FRAME_PAGES as u64).collect();
                            writer.put(1, chunk, &pages, &data).unwrap();
                        }
                        writer
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame decode");
    group.throughput(Throughput::Bytes(FRAME_BYTES as u64));
    for (name, data) in contents() {
        let packed = zstd::bulk::compress(&data, 1).unwrap();
        for (how, codec, stored) in [("raw", Codec::Raw, &data), ("zstd", Codec::Zstd, &packed)] {
            if stored.len() > FRAME_BYTES {
                continue;
            }
            let crc = crc32c::crc32c(stored);
            let mut out = Vec::new();
            group.bench_function(format!("{name}/{how}"), |b| {
                b.iter(|| {
                    images::decode::frame(codec, FRAME_PAGES, crc, black_box(stored), &mut out)
                        .unwrap();
                });
            });
        }
    }
}

fn checksum(c: &mut Criterion) {
    let [(_, data), ..] = contents();
    let mut group = c.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(FRAME_BYTES as u64));
    group.bench_function("crc32c", |b| b.iter(|| crc32c::crc32c(black_box(&data))));
    group.bench_function("blake3", |b| b.iter(|| blake3::hash(black_box(&data))));
}

fn manifest(c: &mut Criterion) {
    let (_dir, job) = store();
    let snapshot = benches::snapshot(64, 200);
    let mut group = c.benchmark_group("manifest");
    group.sample_size(20);
    group.bench_function("write", |b| {
        b.iter_batched(
            || {
                (
                    job.begin(Compression::None, None).unwrap(),
                    snapshot.clone(),
                )
            },
            |(writer, snapshot)| {
                writer
                    .commit(snapshot, proto::Statistics::default())
                    .unwrap()
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("read", |b| b.iter(|| job.checkpoint(None).unwrap()));
}

criterion_group!(benches, encode, decode, checksum, manifest);
criterion_main!(benches);
