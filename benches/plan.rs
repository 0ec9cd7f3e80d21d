//! Making the plan of a restore.
#![allow(missing_docs, clippy::unwrap_used)] // Criterion's macros; a benchmark that fails may stop.

use criterion::{Criterion, criterion_group, criterion_main};
use engine::{FilesPolicy, RestoreOptions, Silent};
use images::{Compression, FRAME_PAGES, PAGE_SIZE, Store, proto};

fn plan(c: &mut Criterion) {
    let mut group = c.benchmark_group("plan");
    group.sample_size(20);
    for (processes, mappings) in [(1, 10), (64, 200), (1, 10_000)] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let job = store.create_job("bench").unwrap();
        let writer = job.begin(Compression::None, None).unwrap();
        let data = vec![1; FRAME_PAGES * PAGE_SIZE];
        let snapshot = benches::snapshot(processes, mappings);
        for process in &snapshot.processes {
            // The first half of each mapping.
            let pages: Vec<u64> = (256..256 + FRAME_PAGES as u64).collect();
            writer
                .put(process.pid.into(), 256 / FRAME_PAGES as u64, &pages, &data)
                .unwrap();
        }
        writer
            .commit(snapshot, proto::Statistics::default())
            .unwrap();
        let checkpoint = job.checkpoint(None).unwrap();
        let options = RestoreOptions {
            files: FilesPolicy::Keep,
            tcp: engine::TcpPolicy::default(),
            apart: false,
            init: vec!["ckptd".into()],
            lazy: None,
            watch: false,
            before_it_runs: &|| (),
            progress: &Silent,
        };
        group.bench_function(
            format!("{processes} processes, {mappings} mappings each"),
            |b| {
                b.iter(|| engine::plan(&checkpoint, &options).unwrap());
            },
        );
    }
}

criterion_group!(benches, plan);
criterion_main!(benches);
