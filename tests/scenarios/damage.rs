//! Damaged images: each ends in exit status 3 and one clear message; no panic, and no process is left.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::fs;
use std::path::{Path, PathBuf};

use tests::{Job, Subject, run};

/// A killed job with one checkpoint.
fn lost_job(subject: &'static str) -> Job {
    let mut job = Job::start(&Subject::new(subject)).expect("this needs nothing special");
    let _ = job.checkpoint(&[]).expect(0);
    job.kill_all();
    job.go();
    job
}

/// Expects that `verify` and `restore` both find the damage, and that nothing is left of the attempt.
#[track_caller]
fn expect_damage(job: &Job, what: &str) {
    for verb in ["verify", "restore"] {
        let mut command = job.ckptd(verb);
        command.env("CKPTD_TEST_JOB", &job.name);
        let output = run(command.arg(&job.name));
        assert!(
            output.code() == 3,
            "{what}: expected exit status 3\n{output}"
        );
        assert!(
            !output.stderr.contains("panicked at"),
            "{what}: a panic\n{output}"
        );
        assert!(
            !output.stderr.trim().is_empty() || !output.stdout.trim().is_empty(),
            "{what}: it says nothing\n{output}"
        );
        assert!(
            job.processes().is_empty(),
            "{what}: processes are left\n{job}"
        );
    }
    for verb in ["show", "list", "prune"] {
        let mut command = job.ckptd(verb);
        if verb != "list" {
            command.arg(&job.name);
        }
        let output = run(&mut command);
        assert!(
            !output.stderr.contains("panicked at") && output.code() < 4,
            "{what}: {output}"
        );
    }
}

/// Replaces a file for the time of a look.
fn with_content(path: &Path, content: Option<&[u8]>, look: impl FnOnce()) {
    let before = fs::read(path).unwrap();
    match content {
        Some(content) => fs::write(path, content).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
    look();
    fs::write(path, before).unwrap();
}

/// Every file of a checkpoint, damaged in turn by `damage`, which gives the variants of a content with their names.
fn each_file(subject: &'static str, damage: impl Fn(&[u8]) -> Vec<(String, Option<Vec<u8>>)>) {
    let mut job = lost_job(subject);
    for path in job.stored() {
        let content = fs::read(&path).unwrap();
        for (name, damaged) in damage(&content) {
            if damaged.is_none() && path.extension().is_some_and(|end| end == "ckpt") {
                continue; // Without its manifest there is no checkpoint, whole or damaged.
            }
            let what = format!("{}: {name}", path.display());
            with_content(&path, damaged.as_deref(), || expect_damage(&job, &what));
        }
    }
    // With everything put back it is whole again.
    let _ = run(job.ckptd("verify").arg(&job.name)).expect(0);
    job.restore(&[]);
    job.finish();
}

#[test]
fn flipped_bits() {
    each_file("children", |content| {
        let length = content.len();
        // The ends, where headers and trailers are, closely; the middle at odd places.
        let mut places: Vec<usize> = (0..24).chain((1..12).map(|i| length * i / 12)).collect();
        places.extend((1..=24).filter_map(|back| length.checked_sub(back)));
        places.retain(|place| *place < length);
        places.sort_unstable();
        places.dedup();
        let flip = |place: usize| {
            let mut damaged = content.to_vec();
            damaged[place] ^= 1 << (place % 8);
            (
                format!("bit flipped in byte {place} of {length}"),
                Some(damaged),
            )
        };
        places.into_iter().map(flip).collect()
    });
}

#[test]
fn files_cut_or_gone() {
    each_file("heap", |content| {
        let length = content.len();
        let cuts = [
            0,
            1,
            7,
            8,
            64,
            length / 3,
            length / 2,
            length.saturating_sub(100),
            length.saturating_sub(1),
        ];
        let cut = |at: &usize| {
            (
                format!("cut to {at} of {length} bytes"),
                Some(content[..*at].to_vec()),
            )
        };
        let mut all: Vec<_> = cuts.iter().filter(|at| **at < length).map(cut).collect();
        all.push(("removed".into(), None));
        all
    });
}

#[test]
fn zeroes_and_noise() {
    each_file("heap", |content| {
        let length = content.len();
        let mut noise = content.to_vec();
        let mut state = 88_172_645_463_325_252_u64;
        for byte in &mut noise[length / 4..length / 2] {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[0];
        }
        let mut hole = content.to_vec();
        hole[length / 2..].fill(0);
        let full = vec![0xff; length];
        vec![
            ("a quarter is noise".into(), Some(noise)),
            ("the second half is zero".into(), Some(hole)),
            ("all zero".into(), Some(vec![0; length])),
            ("all ones".into(), Some(full)),
        ]
    });
}

/// The files of a job's only checkpoint: the manifest and its segments.
fn parts(job: &Job) -> (PathBuf, Vec<PathBuf>) {
    let manifests = job.manifests();
    let mut segments = job.stored();
    segments.retain(|path| !manifests.contains(path));
    (manifests[0].clone(), segments)
}

#[test]
fn segments_swapped() {
    let (first, second) = (lost_job("heap"), lost_job("anonymous"));
    let (ours, theirs) = (parts(&first).1, parts(&second).1);
    assert!(!ours.is_empty() && !theirs.is_empty());
    for (our, their) in ours.iter().zip(&theirs) {
        let theirs = fs::read(their).unwrap();
        with_content(our, Some(&theirs), || {
            expect_damage(&first, "another job's segment");
        });
    }
}

#[test]
fn an_older_segment_of_the_same_job() {
    let mut job = Job::start(&Subject::new("heap")).expect("this needs nothing special");
    let _ = job.checkpoint(&[]).expect(0);
    let old = parts(&job).1;
    let _ = job.checkpoint(&[]).expect(0);
    job.kill_all();
    let mut new = job.stored();
    new.retain(|path| !old.contains(path) && path.extension().is_none_or(|end| end != "ckpt"));
    for (old, new) in old.iter().zip(&new) {
        let older = fs::read(old).unwrap();
        with_content(new, Some(&older), || {
            expect_damage(&job, "an older segment in the place of the newer");
        });
    }
}

#[test]
fn the_manifest_of_another_job() {
    let (first, second) = (lost_job("heap"), lost_job("children"));
    let theirs = fs::read(parts(&second).0).unwrap();
    with_content(&parts(&first).0, Some(&theirs), || {
        expect_damage(&first, "another job's manifest");
    });
}

#[test]
fn a_manifest_under_another_number() {
    let mut job = lost_job("heap");
    let (manifest, _) = parts(&job);
    let moved = manifest.with_file_name("000007.ckpt");
    fs::rename(&manifest, &moved).unwrap();
    expect_damage(&job, "a manifest under another number");
    fs::rename(&moved, &manifest).unwrap();
    job.restore(&[]);
    job.finish();
}

#[test]
fn files_that_are_not_files() {
    let job = lost_job("heap");
    let (manifest, segments) = parts(&job);
    for path in segments.iter().chain([&manifest]) {
        let aside = job.work.join("aside");
        fs::rename(path, &aside).unwrap();
        let what = path.display();
        fs::create_dir(path).unwrap();
        expect_damage(&job, &format!("{what}: a directory"));
        fs::remove_dir(path).unwrap();
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        expect_damage(&job, &format!("{what}: a FIFO"));
        fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path).unwrap();
        expect_damage(&job, &format!("{what}: a link to an endless device"));
        fs::remove_file(path).unwrap();
        fs::rename(&aside, path).unwrap();
    }
}
