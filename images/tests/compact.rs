//! Rewriting segments: what it gives back, and that it never harms, whenever it ends.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::Memory;
use images::{Checkpoint, Compression, FRAME_PAGES, Job, Keep, PageSet, Store, proto};

/// Takes a checkpoint in which `pages` of space 1 are written; gives what it holds.
fn write(job: &Job, memory: &mut Memory, pages: impl Iterator<Item = u64>, seed: u64) {
    let base = job.checkpoint(None).ok();
    let kinds = |page| [1, 2, 2, 3][page as usize % 4];
    let put: BTreeMap<u64, Vec<u8>> = pages
        .map(|page| (page, common::page(kinds(page), seed * 10_000 + page)))
        .collect();
    let writer = job.begin(Compression::Fast, base.as_ref()).unwrap();
    if let Some(base) = base {
        let numbers = PageSet::from_iter(put.keys().copied());
        writer.keep(1, base.pages(1) - numbers).unwrap();
    }
    memory.entry(1).or_default().extend(put.clone());
    common::put(&writer, &Memory::from([(1, put)]), FRAME_PAGES).unwrap();
    writer
        .commit(common::snapshot(), proto::Statistics::default())
        .unwrap();
}

/// A chain of ten, of which 1, 4 and 7 and later ones are left.
fn chain(job: &Job) -> BTreeMap<u64, Memory> {
    let mut memory = Memory::new();
    let mut all = BTreeMap::new();
    write(job, &mut memory, 0..300, 0);
    all.insert(1, memory.clone());
    for sequence in 2..=10 {
        write(
            job,
            &mut memory,
            (0..300).filter(|page| page % 7 != 3 && (page + sequence) % 4 != 0),
            sequence,
        );
        all.insert(sequence, memory.clone());
    }
    for sequence in [2, 3, 5, 6] {
        std::fs::remove_file(common::manifest_path(job, sequence)).unwrap();
        all.remove(&sequence);
    }
    job.prune(&Keep::default(), false).unwrap();
    all
}

fn check(job: &Job, all: &BTreeMap<u64, Memory>) {
    for (&sequence, memory) in all {
        let checkpoint = job.checkpoint(Some(sequence)).unwrap();
        assert_eq!(&common::read(&checkpoint).unwrap(), memory, "{sequence}");
    }
    assert_eq!(job.verify(None).unwrap(), []);
}

fn room(job: &Job) -> u64 {
    let lengths = common::segments(job)
        .into_iter()
        .map(|path| std::fs::metadata(path).unwrap().len());
    lengths.sum()
}

#[test]
fn mostly_dead_segments_are_rewritten() {
    let (_dir, job) = common::job();
    let mut memory = Memory::new();
    write(&job, &mut memory, 0..1000, 0);
    write(&job, &mut memory, 0..400, 1);
    let base = job.checkpoint(None).unwrap();
    // As long as 1 is there, all of it is needed; 600 of 1000 are worth keeping, 300 are not.
    assert_eq!(job.compact(&|| true).unwrap().segments, 0);
    job.prune(&Keep::last(1), false).unwrap();
    assert_eq!(job.compact(&|| true).unwrap().segments, 0);
    write(&job, &mut memory, 400..700, 2);
    job.prune(&Keep::last(1), false).unwrap();
    let before = room(&job);
    let would = job.compactable().unwrap();
    let done = job.compact(&|| true).unwrap();
    assert_eq!(done.segments, 1);
    assert_eq!(room(&job), before - done.freed + done.written);
    assert!(done.freed > done.written + would / 2, "{done:?} {would}");
    assert_eq!(job.compactable().unwrap(), 0);
    let all = BTreeMap::from([(3, memory.clone())]);
    check(&job, &all);

    // One that was open before still reads, and can be built upon where its pages are.
    common::read(&base).unwrap();
    write(&job, &mut memory, 0..10, 3);
    check(&job, &BTreeMap::from([(4, memory)]));
}

#[test]
fn many_segments_become_few() {
    let (_dir, job) = common::job();
    let mut memory = Memory::new();
    let mut all = BTreeMap::new();
    for sequence in 1..=66 {
        write(&job, &mut memory, sequence..sequence + 2, sequence);
        all.insert(sequence, memory.clone());
    }
    assert_eq!(common::segments(&job).len(), 66);
    job.compact(&|| true).unwrap();
    assert_eq!(job.checkpoint(None).unwrap().manifest().segments.len(), 33);
    check(&job, &all);
}

#[test]
fn an_open_checkpoint_is_built_upon_after_its_segments_were_rewritten() {
    let (_dir, job) = common::job();
    let all = chain(&job);
    let base: Checkpoint = job.checkpoint(None).unwrap();
    assert!(job.compact(&|| true).unwrap().segments > 0);
    let writer = job.begin(Compression::Fast, Some(&base)).unwrap();
    writer.keep(1, base.pages(1)).unwrap();
    writer
        .commit(common::snapshot(), proto::Statistics::default())
        .unwrap();
    assert_eq!(
        common::read(&job.checkpoint(None).unwrap()).unwrap(),
        all[&10]
    );
    assert_eq!(common::read(&base).unwrap(), all[&10]);
}

#[test]
fn checkpoints_are_written_while_segments_are() {
    let (_dir, job) = common::job();
    let mut all = chain(&job);
    let mut memory = all[&10].clone();
    let taken = Cell::new(0);
    let memory_cell = std::cell::RefCell::new(&mut memory);
    // At the first step nobody holds the job.
    job.compact(&|| {
        if taken.replace(taken.get() + 1) == 0 {
            write(&job, &mut memory_cell.borrow_mut(), 0..20, 11);
            job.prune(&Keep::last(3), false).unwrap();
        }
        true
    })
    .unwrap();
    all.retain(|&sequence, _| sequence > 8);
    all.insert(11, memory);
    check(&job, &all);
    // What it had looked at was gone in part; the next one does the rest.
    job.compact(&|| true).unwrap();
    assert_eq!(job.compactable().unwrap(), 0);
    check(&job, &all);
}

#[test]
fn pages_that_nobody_needed_may_be_needed_again() {
    let (_dir, job) = common::job();
    let mut memory = Memory::new();
    write(&job, &mut memory, 0..300, 0);
    let (base, old) = (job.checkpoint(None).unwrap(), memory.clone());
    write(&job, &mut memory, 0..200, 1);
    job.prune(&Keep::last(1), false).unwrap();
    // The base is gone, but its segment is not: what is taken now needs all of it.
    let taken = Cell::new(false);
    job.compact(&|| {
        if !taken.replace(true) {
            let writer = job.begin(Compression::Fast, Some(&base)).unwrap();
            writer.keep(1, base.pages(1)).unwrap();
            writer
                .commit(common::snapshot(), proto::Statistics::default())
                .unwrap();
        }
        true
    })
    .unwrap();
    assert!(taken.get());
    check(&job, &BTreeMap::from([(2, memory), (3, old)]));
}

#[test]
fn damage_is_not_copied() {
    let (_dir, job) = common::job();
    chain(&job);
    let largest = common::segments(&job)
        .into_iter()
        .max_by_key(|path| std::fs::metadata(path).unwrap().len());
    let mut bytes = std::fs::read(largest.as_ref().unwrap()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(largest.unwrap(), bytes).unwrap();
    let damage = job.verify(None).unwrap();
    assert!(!damage.is_empty());
    job.compact(&|| true)
        .map(drop)
        .unwrap_or_else(|error| assert!(error.is_damage()));
    let after = job.verify(None).unwrap();
    let hurt = |damage: &[images::Damage]| {
        damage
            .iter()
            .map(|hit| (hit.checkpoint, hit.addresses.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(hurt(&damage), hurt(&after));
}

/// Set for the process that is to die.
const DIE: &str = "IMAGES_TEST_DIE";

/// Not a test by itself: rewrites the segments in a directory and dies at a step of it.
#[test]
fn a_process_that_dies() {
    let Ok(order) = std::env::var(DIE) else {
        return;
    };
    let (step, dir) = order.split_once(' ').unwrap();
    let left = Cell::new(step.parse::<usize>().unwrap());
    let job = Store::open(Path::new(dir)).unwrap().job("job").unwrap();
    let done = job.compact(&|| {
        if left.get() == 0 {
            std::process::abort();
        }
        left.set(left.get() - 1);
        true
    });
    assert!(done.unwrap().segments > 0);
}

#[test]
fn death_at_any_step_does_no_harm() {
    let mut step = 0;
    loop {
        let (dir, job) = common::job();
        let all = chain(&job);
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_that_dies", "--test-threads=1"])
            .env(DIE, format!("{step} {}", dir.path().display()))
            .output()
            .unwrap();
        check(&job, &all);
        // The next one does what is left, and nothing remains of the first.
        job.prune(&Keep::default(), false).unwrap();
        job.compact(&|| true).unwrap();
        assert_eq!(job.compactable().unwrap(), 0);
        check(&job, &all);
        let named: std::collections::BTreeSet<_> = all
            .keys()
            .flat_map(|&sequence| {
                job.checkpoint(Some(sequence))
                    .unwrap()
                    .manifest()
                    .segments
                    .clone()
            })
            .map(|reference| reference.id)
            .collect();
        assert_eq!(common::segments(&job).len(), named.len());
        if status.status.success() {
            break;
        }
        step += if step < 8 { 1 } else { 3 };
    }
    assert!(step > 10, "{step}");
}
