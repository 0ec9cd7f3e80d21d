//! Chains of checkpoints: opening them, building on them, finding a page.
//!
//! All frames have the same bytes, which are stored once, so that large chains take little room; their tables and sets
//! are as large as ever. What the chain's metadata takes on disk is printed.
#![allow(missing_docs, clippy::unwrap_used)] // Criterion's macros; a benchmark that fails may stop.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use images::{Checkpoint, Compression, FRAME_PAGES, Job, PAGE_SIZE, PageSet, Store, proto};

const GIB_PAGES: u64 = (1 << 30) / PAGE_SIZE as u64;
const FRAME_BYTES: usize = FRAME_PAGES * PAGE_SIZE;

/// A generator of numbers that is good enough (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

fn take(job: &Job, base: Option<&Checkpoint>, pages: &PageSet) -> u64 {
    let writer = job.begin(Compression::None, base).unwrap();
    // Not what the base has, or it would be kept.
    let data = vec![1 + writer.sequence() as u8; FRAME_BYTES];
    let numbers: Vec<u64> = pages.iter().collect();
    for (chunk, numbers) in numbers.chunks(FRAME_PAGES).enumerate() {
        let data = &data[..numbers.len() * PAGE_SIZE];
        writer.put(1, chunk as u64, numbers, data).unwrap();
    }
    if let Some(base) = base {
        writer.keep(1, base.pages(1) - pages).unwrap();
    }
    let committed = writer
        .commit(proto::Snapshot::default(), proto::Statistics::default())
        .unwrap();
    committed.bytes
}

/// A job of so many GiB, of which one page in a hundred is written before each further checkpoint.
fn chain(gib: u64, checkpoints: u64) -> (tempfile::TempDir, Job) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    let job = store.create_job("bench").unwrap();
    let all = gib * GIB_PAGES;
    let mut pages = PageSet::new();
    pages.insert_range(0..all);
    take(&job, None, &pages);
    let (mut random, mut most) = (Random(1), 0);
    for _ in 1..checkpoints {
        let base = job.checkpoint(None).unwrap();
        let pages: PageSet = (0..all / 100).map(|_| random.next() % all).collect();
        // One frame, and the last one, which is smaller.
        let data = FRAME_BYTES + pages.len() as usize % FRAME_PAGES * PAGE_SIZE;
        most = most.max(take(&job, Some(&base), &pages) - data as u64);
    }
    eprintln!("{gib} GiB, {checkpoints} checkpoints: at most {most} bytes beside pages");
    (dir, job)
}

fn chains(c: &mut Criterion) {
    for (gib, checkpoints) in [(1, 1), (8, 1), (4, 100)] {
        let (_dir, job) = chain(gib, checkpoints);
        let mut group = c.benchmark_group(format!("{gib} GiB, {checkpoints} checkpoints"));
        group.sample_size(10);
        group.bench_function("open", |b| b.iter(|| job.checkpoint(None).unwrap()));
        group.bench_function("begin", |b| {
            b.iter_batched(
                || job.checkpoint(None).unwrap(),
                |base| drop(job.begin(Compression::None, Some(&base)).unwrap()),
                BatchSize::PerIteration,
            );
        });
        group.bench_function("idle checkpoint", |b| {
            b.iter(|| {
                let base = job.checkpoint(None).unwrap();
                take(&job, Some(&base), &PageSet::new())
            });
        });
        let checkpoint = job.checkpoint(None).unwrap();
        let mut random = Random(2);
        group.bench_function("locate", |b| {
            b.iter(|| checkpoint.locate(1, black_box(random.next() % (gib * GIB_PAGES))));
        });
    }
}

criterion_group!(benches, chains);
criterion_main!(benches);
