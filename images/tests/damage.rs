//! Whatever happens to the files, it is noticed, and no wrong byte is read.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::path::Path;

use common::Memory;
use images::{Compression, Damage, Error, Job, proto};

/// Every byte of both files lies in a checkpoint this small, and every kind of frame.
fn small() -> (tempfile::TempDir, Job, Memory) {
    let (dir, job) = common::job();
    let memory = common::sample();
    common::write(&job, Compression::Fast, &memory).unwrap();
    (dir, job, memory)
}

/// That a changed image is found to be damaged, and is refused or still gives the right pages.
fn check(job: &Job, memory: &Memory, what: &str) -> Vec<Damage> {
    let damage = job.verify(None).unwrap();
    assert!(!damage.is_empty(), "{what} was not found");
    match job
        .checkpoint(None)
        .and_then(|checkpoint| common::read(&checkpoint))
    {
        Ok(read) => assert_eq!(&read, memory, "{what} gave wrong pages"),
        Err(error) => assert!(error.is_damage(), "{what}: {error}"),
    }
    damage
}

fn files(job: &Job) -> Vec<std::path::PathBuf> {
    vec![
        common::manifest_path(job, 1),
        common::segments(job).remove(0),
    ]
}

#[test]
fn every_flipped_byte_is_found() {
    let (_dir, job, memory) = small();
    for path in files(&job) {
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bad).unwrap();
            for damage in check(&job, &memory, &format!("byte {at} of {}", path.display())) {
                assert_eq!((damage.checkpoint, &damage.file), (1, &path));
            }
        }
        std::fs::write(&path, &good).unwrap();
    }
    assert_eq!(job.verify(None).unwrap(), []);
}

#[test]
fn every_other_length_is_found() {
    let (_dir, job, memory) = small();
    for path in files(&job) {
        let good = std::fs::read(&path).unwrap();
        for length in 0..good.len() {
            std::fs::write(&path, &good[..length]).unwrap();
            check(
                &job,
                &memory,
                &format!("{} cut to {length} bytes", path.display()),
            );
        }
        std::fs::write(&path, [&good[..], &[0]].concat()).unwrap();
        check(&job, &memory, "a byte more");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &good).unwrap();
    }
    assert_eq!(job.verify(None).unwrap(), []);
}

#[test]
fn damage_names_process_and_addresses() {
    let (_dir, job, memory) = small();
    let path = common::segments(&job).remove(0);
    let good = std::fs::read(&path).unwrap();
    // The compressed frame follows the header; the raw one lies on the next page boundary.
    for (at, addresses) in [
        (70, 0x10_000..0x7fff_ffff_1000),
        (4096 + 5, 0x7000_0000..0x7000_3000),
    ] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let damage = check(&job, &memory, "a page");
        assert_eq!(damage.len(), 1);
        assert_eq!(
            (damage[0].pid, damage[0].addresses.clone()),
            (Some(7), Some(addresses))
        );
        let text = damage[0].to_string();
        assert!(
            text.contains("checkpoint 1, process 7, addresses 0x") && text.contains("checksum"),
            "{text}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    let damage = job.verify(Some(1)).unwrap();
    assert!(
        damage
            .iter()
            .all(|damage| damage.pid == Some(7) && damage.what.contains("missing")),
        "{damage:?}"
    );
    assert_eq!(damage.len(), 2, "one for each space");
}

#[test]
fn swapped_segments_are_refused() {
    let (_dir, job, _) = small();
    let mut other = common::sample();
    other.get_mut(&1).unwrap().insert(0x10, common::page(1, 5));
    common::write(&job, Compression::Fast, &other).unwrap();
    let segments = common::segments(&job);
    let (a, b) = (
        std::fs::read(&segments[0]).unwrap(),
        std::fs::read(&segments[1]).unwrap(),
    );
    std::fs::write(&segments[0], &b).unwrap();
    std::fs::write(&segments[1], &a).unwrap();
    for sequence in [1, 2] {
        assert!(job.checkpoint(Some(sequence)).unwrap_err().is_damage());
        assert!(!job.verify(Some(sequence)).unwrap().is_empty());
    }
}

#[test]
fn files_of_another_job_or_number_are_refused() {
    let (dir, job, _) = small();
    let store = images::Store::open(dir.path()).unwrap();
    let other = store.create_job("other").unwrap();
    common::write(&other, Compression::Fast, &common::sample()).unwrap();
    for (from, to) in [
        (
            common::manifest_path(&other, 1),
            common::manifest_path(&job, 2),
        ),
        (
            common::manifest_path(&job, 1),
            common::manifest_path(&job, 3),
        ),
    ] {
        std::fs::copy(from, to).unwrap();
    }
    for sequence in [2, 3] {
        let error = job.checkpoint(Some(sequence)).unwrap_err();
        assert!(
            error.is_damage() && error.to_string().contains("it is checkpoint 1 of job"),
            "{error}"
        );
    }
    // The segment of another job, under the name of ours.
    std::fs::copy(&common::segments(&other)[0], &common::segments(&job)[0]).unwrap();
    assert!(job.checkpoint(Some(1)).unwrap_err().is_damage());
}

#[test]
fn features_decide_who_may_read() {
    let (_dir, job, memory) = small();
    let manifest = job.checkpoint(None).unwrap().manifest().clone();
    let path = common::manifest_path(&job, 1);
    let name = |name: &str| vec![name.to_string()];

    let features = proto::Features {
        compatible: name("shiny"),
        incompatible: vec![],
    };
    common::write_manifest(&path, &features, &manifest);
    assert_eq!(
        common::read(&job.checkpoint(None).unwrap()).unwrap(),
        memory
    );

    let features = proto::Features {
        compatible: vec![],
        incompatible: name("encrypted"),
    };
    common::write_manifest(&path, &features, &manifest);
    let error = job.checkpoint(None).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }) && error.is_damage());
    assert!(error.to_string().contains("encrypted"), "{error}");
    assert_eq!(job.verify(None).unwrap().len(), 1);

    let mut bytes = common::encode_manifest(&proto::Features::default(), &manifest);
    bytes[8] = 2;
    std::fs::write(&path, bytes).unwrap();
    let error = job.checkpoint(None).unwrap_err();
    assert!(
        matches!(error, Error::Unsupported { .. }) && error.to_string().contains("version 2"),
        "{error}"
    );
}

#[test]
fn records_that_lead_elsewhere_are_refused() {
    let (_dir, job, _) = small();
    let good = job.checkpoint(None).unwrap().manifest().clone();
    let path = common::manifest_path(&job, 1);
    type Change = fn(&mut proto::Manifest);
    let changes: &[(&str, Change)] = &[
        ("id", |manifest| {
            manifest.segments[0].id = b"../../../etc/xyz".to_vec();
        }),
        ("short id", |manifest| {
            manifest.segments[0].id = b"../..".to_vec();
        }),
        ("hash", |manifest| manifest.segments[0].hash.clear()),
        ("length", |manifest| manifest.segments[0].length = u64::MAX),
        ("segment twice", |manifest| {
            manifest.segments.push(manifest.segments[0].clone());
        }),
        ("layer", |manifest| manifest.spaces[0].layers[0].segment = 1),
        ("layer twice", |manifest| {
            manifest.spaces[0].layers.extend_from_within(..);
        }),
        ("space", |manifest| manifest.spaces[1].space = 9),
        ("space order", |manifest| manifest.spaces.swap(0, 1)),
        ("zero", |manifest| manifest.spaces[0].zero = vec![0xff; 40]),
        ("section", |manifest| {
            manifest.spaces[0].layers[0].section = 7;
        }),
        ("section of another space", |manifest| {
            manifest.spaces[0].layers[0].section = manifest.spaces[1].layers[0].section;
        }),
        ("zero and absent", |manifest| {
            manifest.spaces[0].absent = manifest.spaces[0].zero.clone();
        }),
        ("job", |manifest| manifest.job = "../job".into()),
        ("snapshot", |manifest| manifest.snapshot = None),
    ];
    for (what, change) in changes {
        let mut manifest = good.clone();
        change(&mut manifest);
        common::write_manifest(&path, &proto::Features::default(), &manifest);
        let error = job.checkpoint(None).expect_err(what);
        assert!(error.is_damage(), "{what}: {error}");
        assert!(!job.verify(None).unwrap().is_empty(), "{what}");
    }
}

#[test]
fn what_is_not_a_file_is_refused_without_waiting() {
    let (_dir, job, _) = small();
    for path in files(&job) {
        let aside = path.with_extension("aside");
        std::fs::rename(&path, &aside).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(job.checkpoint(None).unwrap_err().is_damage());
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(Path::new("/dev/zero"), &path).unwrap();
        assert!(job.checkpoint(None).unwrap_err().is_damage());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(job.checkpoint(None).unwrap_err().is_damage());
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    }
    job.checkpoint(None).unwrap();
}
