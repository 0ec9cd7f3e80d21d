//! Finding and copying pages, of this process itself.
#![allow(missing_docs, clippy::unwrap_used)] // Criterion's macros; a benchmark that fails may stop.

use std::ops::Range;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memory::{Error, Kind, PAGE_SIZE, Pagemap, Source, copy_out};

const PAGES: u64 = 16384;

/// 64 MiB of which every `step`th page is written.
fn area(step: usize) -> (Vec<u8>, Range<u64>) {
    let mut bytes = vec![0; ((PAGES + 1) * PAGE_SIZE) as usize];
    let start = (bytes.as_ptr() as u64).next_multiple_of(PAGE_SIZE);
    let first = (start - bytes.as_ptr() as u64) as usize;
    bytes[first..]
        .iter_mut()
        .step_by(PAGE_SIZE as usize * step)
        .for_each(|byte| *byte = 1);
    (bytes, start..start + PAGES * PAGE_SIZE)
}

fn scan(c: &mut Criterion) {
    let pagemap = Pagemap::open(std::process::id()).unwrap();
    let mut group = c.benchmark_group("page scan");
    group.throughput(Throughput::Bytes(PAGES * PAGE_SIZE));
    for (name, step) in [
        ("dense", 1),
        ("every second page", 2),
        ("every 64th page", 64),
    ] {
        let (_bytes, range) = area(step);
        let mut runs = Vec::new();
        group.bench_function(name, |b| {
            b.iter(|| {
                runs.clear();
                pagemap
                    .content(range.clone(), Kind::Anonymous, &mut runs)
                    .unwrap();
            });
        });
    }
}

fn copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy out");
    group.sample_size(20);
    for (name, step) in [("dense", 1), ("every second page", 2)] {
        let (_bytes, range) = area(step);
        let areas = [(range, Kind::Anonymous)];
        let sources = [Source::Process {
            pid: std::process::id(),
            areas: &areas,
            runs: false,
        }];
        group.throughput(Throughput::Bytes(PAGES * PAGE_SIZE / step as u64));
        for threads in [1, 2] {
            group.bench_function(format!("{name}/{threads} threads"), |b| {
                b.iter(|| copy_out(&sources, threads, 64, |_| Ok::<_, Error>(())).unwrap());
            });
        }
    }
}

criterion_group!(benches, scan, copy);
criterion_main!(benches);
