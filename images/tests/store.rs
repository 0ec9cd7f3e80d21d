//! The store as a whole: what counts as a checkpoint, and what goes.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::path::PathBuf;

use images::{Compression, Error, Keep, Store, proto};

#[test]
fn jobs_and_checkpoints_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        Store::open(&dir.path().join("none")),
        Err(Error::NoStore { .. })
    ));
    let store = Store::create(&dir.path().join("deep/store")).unwrap();
    assert_eq!(store.jobs().unwrap(), Vec::<String>::new());
    assert!(matches!(store.job("a"), Err(Error::NoJob { .. })));
    assert!(matches!(store.job("../store"), Err(Error::BadName { .. })));
    let job = store.create_job("a").unwrap();
    store.create_job("b").unwrap();
    assert_eq!(store.jobs().unwrap(), ["a", "b"]);
    assert!(matches!(
        job.checkpoint(None),
        Err(Error::NoCheckpoints { .. })
    ));
    for sequence in 1..=3 {
        assert_eq!(
            common::write(&job, Compression::Fast, &common::sample())
                .unwrap()
                .sequence,
            sequence
        );
    }
    assert_eq!(job.sequences().unwrap(), [1, 2, 3]);
    assert_eq!(job.checkpoint(None).unwrap().sequence(), 3);
    assert_eq!(job.checkpoint(Some(2)).unwrap().manifest().parent, 1);
    let error = job.checkpoint(Some(9)).unwrap_err();
    assert!(
        !error.is_damage() && error.to_string().contains("it has 1 to 3"),
        "{error}"
    );
}

#[test]
fn one_writes_at_a_time() {
    let (_dir, job) = common::job();
    let writer = job.begin(Compression::Fast, None).unwrap();
    assert!(matches!(
        job.begin(Compression::Fast, None),
        Err(Error::Busy { .. })
    ));
    assert!(matches!(
        job.prune(&Keep::last(1), false),
        Err(Error::Busy { .. })
    ));
    drop(writer);
    job.begin(Compression::Fast, None).unwrap();
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let (_dir, job) = common::job();
    let writer = job.begin(Compression::None, None).unwrap();
    writer.put(1, 0, &[5], &common::page(1, 1)).unwrap();
    assert_eq!(
        writer.written(),
        8192 - 64,
        "one page and the padding before it"
    );
    assert!(!common::segments(&job).is_empty());
    drop(writer);
    assert_eq!(common::segments(&job), Vec::<PathBuf>::new());
    assert_eq!(job.sequences().unwrap(), []);
}

#[test]
fn a_job_without_pages_needs_no_segment() {
    let (_dir, job) = common::job();
    job.begin(Compression::Fast, None)
        .unwrap()
        .commit(common::snapshot(), proto::Statistics::default())
        .unwrap();
    assert_eq!(common::segments(&job), Vec::<PathBuf>::new());
    assert_eq!(job.verify(None).unwrap(), []);
}

#[test]
fn prune_keeps_the_newest_and_what_they_need() {
    let (_dir, job) = common::job();
    for _ in 0..4 {
        common::write(&job, Compression::Fast, &common::sample()).unwrap();
    }
    let would = job.prune(&Keep::last(2), true).unwrap();
    assert_eq!(job.sequences().unwrap(), [1, 2, 3, 4]);
    let pruned = job.prune(&Keep::last(2), false).unwrap();
    assert_eq!(would, pruned);
    assert_eq!(
        (pruned.checkpoints, pruned.segments, pruned.temporaries),
        (vec![1, 2], 2, 0)
    );
    assert!(pruned.bytes > 0);
    assert_eq!(job.sequences().unwrap(), [3, 4]);
    assert_eq!(common::segments(&job).len(), 2);
    assert_eq!(job.verify(None).unwrap(), []);
    // Numbers go on.
    assert_eq!(
        common::write(&job, Compression::Fast, &common::sample())
            .unwrap()
            .sequence,
        5
    );
    job.prune(&Keep::last(0), false).unwrap();
    assert_eq!(common::segments(&job), Vec::<PathBuf>::new());
}

#[test]
fn what_a_crash_leaves_does_not_count_and_is_collected() {
    let (_dir, job) = common::job();
    common::write(&job, Compression::Fast, &common::sample()).unwrap();
    let segments = job.path().join("segments");
    // As it is after each step of a commit that power cut short.
    let half = segments.join(format!("{}.seg.tmp", "0a".repeat(16)));
    let whole = segments.join(format!("{}.seg", "0b".repeat(16)));
    let manifest = job.path().join("000002.ckpt.tmp");
    // And what is not ours.
    let foreign = [segments.join("notes.txt"), job.path().join("README.tmp")];
    for path in [&half, &whole, &manifest, &foreign[0], &foreign[1]] {
        std::fs::write(path, b"half").unwrap();
    }
    assert_eq!(job.checkpoint(None).unwrap().sequence(), 1);
    assert_eq!(job.verify(None).unwrap(), []);
    // The next checkpoint is not in its way.
    assert_eq!(
        common::write(&job, Compression::Fast, &common::sample())
            .unwrap()
            .sequence,
        2
    );
    std::fs::write(&manifest, b"half").unwrap();
    let pruned = job.prune(&Keep::last(5), false).unwrap();
    assert_eq!(
        (pruned.segments, pruned.temporaries, pruned.bytes),
        (1, 2, 12)
    );
    assert!(!half.exists() && !whole.exists() && !manifest.exists());
    assert!(foreign.iter().all(|path| path.exists()));
    assert_eq!(job.verify(None).unwrap(), []);
}

#[test]
fn prune_spares_what_a_damaged_manifest_may_need() {
    let (_dir, job) = common::job();
    for _ in 0..3 {
        common::write(&job, Compression::Fast, &common::sample()).unwrap();
    }
    let path = common::manifest_path(&job, 3);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[100] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let pruned = job.prune(&Keep::last(1), false).unwrap();
    assert_eq!((pruned.checkpoints, pruned.segments), (vec![1], 0));
    assert_eq!(pruned.unreadable[0].0, 3);
    assert_eq!(
        common::read(&job.checkpoint(Some(2)).unwrap()).unwrap(),
        common::sample()
    );
    // Brought back, it is as good as ever, and the rest goes.
    std::fs::write(&path, &good).unwrap();
    assert_eq!(job.prune(&Keep::last(1), false).unwrap().segments, 2);
    assert_eq!(
        common::read(&job.checkpoint(None).unwrap()).unwrap(),
        common::sample()
    );

    // One that is older than all that are kept goes as any other does.
    common::write(&job, Compression::Fast, &common::sample()).unwrap();
    std::fs::write(&path, &bad).unwrap();
    let pruned = job.prune(&Keep::last(1), false).unwrap();
    assert_eq!(
        (pruned.checkpoints, pruned.segments, pruned.unreadable),
        (vec![3], 1, vec![])
    );
}

/// A file system of its own, 1 MiB large.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> nix::Result<Self> {
        let dir = tempfile::tempdir().unwrap();
        nix::mount::mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some("size=1m"),
        )?;
        Ok(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount(self.0.path());
    }
}

#[test]
fn a_full_disk_leaves_the_store_as_it_was() {
    let small = match Small::new() {
        Ok(small) => small,
        Err(error) => {
            eprintln!("skipped: a file system to fill needs the right to mount one: {error}");
            return;
        }
    };
    let job = Store::create(small.0.path())
        .unwrap()
        .create_job("job")
        .unwrap();
    common::write(&job, Compression::None, &common::sample()).unwrap();
    // With ever more pages it fails first within the manifest or footer, then within the pages.
    let mut failed = 0;
    for pages in (150..400).step_by(5) {
        let memory = (0..pages)
            .map(|number| (number, common::page(2, number)))
            .collect();
        let Err(error) = common::write(&job, Compression::None, &[(1, memory)].into()) else {
            job.prune(&Keep::last(1), false).unwrap();
            continue;
        };
        failed += 1;
        let text = error.to_string();
        assert!(
            !error.is_damage() && text.contains("ckptd prune") && text.contains("/job/"),
            "{text}"
        );
        assert_eq!(job.sequences().unwrap().len(), 1);
        assert_eq!(common::segments(&job).len(), 1);
        assert_eq!(job.verify(None).unwrap(), []);
    }
    assert!((10..50).contains(&failed), "{failed} of 50 did not fit");
}
