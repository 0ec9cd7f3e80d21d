//! Sets of pages: what an incremental checkpoint works out of them while the job may stand still.
#![allow(missing_docs)] // Criterion's macros.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use images::{PAGE_SIZE, PageSet};
use memory::track::page_runs;

const GIB_PAGES: u64 = (1 << 30) / PAGE_SIZE as u64;

/// Of 4 GiB, so many percent of the pages: one by one all over, or in runs of 64.
fn written(percent: u64, run: u64) -> PageSet {
    let all = 4 * GIB_PAGES;
    let step = 100 * run / percent;
    let mut set = PageSet::new();
    for first in (0..all).step_by(step as usize) {
        set.insert_range(first..(first + run).min(all));
    }
    set
}

fn sets(c: &mut Criterion) {
    let mut present = PageSet::new();
    present.insert_range(0..4 * GIB_PAGES);
    for (name, percent, run) in [
        ("1 % apart", 1, 1),
        ("1 % in runs", 1, 64),
        ("50 % apart", 50, 1),
    ] {
        let mut group = c.benchmark_group(format!("page sets, 4 GiB, {name}"));
        group.sample_size(20);
        let written = written(percent, run);
        group.bench_function("insert", |b| {
            b.iter(|| {
                let mut set = PageSet::new();
                let runs = page_runs(black_box(&written), &(0..4 << 30));
                for run in runs {
                    set.insert_range(run.start / PAGE_SIZE as u64..run.end / PAGE_SIZE as u64);
                }
                set
            });
        });
        group.bench_function("union", |b| {
            b.iter_batched(
                || present.clone(),
                |mut set| {
                    set |= black_box(&written);
                    set
                },
                BatchSize::LargeInput,
            );
        });
        group.bench_function("difference", |b| b.iter(|| black_box(&present) - &written));
        group.bench_function("runs", |b| {
            b.iter(|| page_runs(black_box(&written), &(0..4 << 30)));
        });
        group.bench_function("rank", |b| {
            b.iter(|| written.rank(black_box(2 * GIB_PAGES)));
        });
    }
}

criterion_group!(benches, sets);
criterion_main!(benches);
