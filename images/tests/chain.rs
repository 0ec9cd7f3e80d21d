//! Checkpoints that are based on each other, against a model of what they hold.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::collections::BTreeMap;

use common::Memory;
use images::{
    Checkpoint, Compression, Error, FRAME_PAGES, Job, Keep, PAGE_SIZE, PageSet, Where, proto,
};
use proptest::prelude::*;

/// Pages written, as kind and seed by number, in a space.
type Written = BTreeMap<u64, (u8, u64)>;

/// What is written and what is unmapped before a round, by space.
type Round = (BTreeMap<u64, Written>, BTreeMap<u64, Vec<u64>>);

/// What happens to a job between one checkpoint and the next, and while it is copied.
#[derive(Debug, Clone)]
struct Step {
    /// Of which earlier checkpoint it is: 0 none, else the so many latest.
    base: usize,
    rounds: Vec<Round>,
    /// Spaces that end.
    ended: Vec<u64>,
    /// Pages in a chunk.
    size: usize,
    how: Compression,
    /// How many checkpoints are left afterwards; the bases of later ones may be gone then.
    keep: usize,
    /// Whether segments are rewritten afterwards.
    compact: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let number = || prop_oneof![0u64..150, (1u64 << 35) - 40..(1 << 35) + 40];
    // Few seeds, so that the same content comes again.
    let pages = proptest::collection::btree_map(number(), (0u8..4, 0u64..4), 0..60);
    let written = proptest::collection::btree_map(0u64..3, pages, 0..3);
    let gone =
        proptest::collection::btree_map(0u64..3, proptest::collection::vec(number(), 0..30), 0..3);
    let rounds = proptest::collection::vec((written, gone), 0..4);
    (
        prop_oneof![1 => Just(0usize), 8 => Just(1), 2 => Just(2)],
        rounds,
        proptest::collection::vec(0u64..3, 0..2),
        1..=FRAME_PAGES,
        prop_oneof![Just(Compression::None), Just(Compression::Fast)],
        1usize..6,
        any::<bool>(),
    )
        .prop_map(|(base, rounds, ended, size, how, keep, compact)| Step {
            base,
            rounds,
            ended,
            size,
            how,
            keep,
            compact,
        })
}

fn checkpoint_of(job: &Job, models: &BTreeMap<u64, Memory>, base: usize) -> Option<Checkpoint> {
    let sequence = *models.keys().rev().nth(base.checked_sub(1)?)?;
    Some(job.checkpoint(Some(sequence)).unwrap())
}

/// Takes the checkpoint of a step, and gives what it should hold.
fn take(job: &Job, step: &Step, base: Option<&Checkpoint>, mut memory: Memory) -> (u64, Memory) {
    let mut writer = job.begin(step.how, base).unwrap();
    // As the tracker sees it: what was ever written or unmapped since the base is no longer as it was there.
    let mut touched: BTreeMap<u64, PageSet> = BTreeMap::new();
    for &space in &step.ended {
        let pages = memory.remove(&space).unwrap_or_default();
        touched.insert(space, pages.into_keys().collect());
    }
    for (round, (written, gone)) in step.rounds.iter().enumerate() {
        if round > 0 {
            writer.next_round();
        }
        for (&space, numbers) in gone {
            let set = PageSet::from_iter(numbers.iter().copied());
            let has = memory.entry(space).or_default();
            numbers.iter().for_each(|number| drop(has.remove(number)));
            *touched.entry(space).or_default() |= &set;
            writer.forget(space, &set);
        }
        let mut now = Memory::new();
        for (&space, pages) in written {
            let pages = pages
                .iter()
                .map(|(&number, &(kind, seed))| (number, common::page(kind, seed)));
            now.insert(space, pages.collect());
            let numbers = PageSet::from_iter(now[&space].keys().copied());
            *touched.entry(space).or_default() |= numbers;
        }
        common::put(&writer, &now, step.size).unwrap();
        for (space, pages) in now {
            memory.entry(space).or_default().extend(pages);
        }
    }
    if let Some(base) = base {
        for &space in memory.keys() {
            let written = touched.remove(&space).unwrap_or_default();
            writer.keep(space, base.pages(space) - written).unwrap();
        }
    }
    memory.retain(|_, pages| !pages.is_empty());
    let committed = writer
        .commit(common::snapshot(), proto::Statistics::default())
        .unwrap();
    (committed.sequence, memory)
}

fn check(checkpoint: &Checkpoint, memory: &Memory) {
    assert_eq!(&common::read(checkpoint).unwrap(), memory);
    let mut content = 0;
    let mut out = Vec::new();
    for (&space, pages) in memory {
        assert_eq!(checkpoint.pages(space), pages.keys().copied().collect());
        for (&page, data) in pages {
            match checkpoint.locate(space, page).unwrap() {
                Where::Zero => assert!(data.iter().all(|&byte| byte == 0)),
                Where::Frame(frame) => {
                    content += 1;
                    checkpoint.read(&frame, &mut out).unwrap();
                    let at = frame.pages.binary_search(&page).unwrap() * PAGE_SIZE;
                    assert_eq!(&out[at..at + PAGE_SIZE], data);
                }
            }
        }
        for page in (0..151).chain([(1 << 35) + 40, 1 << 51]) {
            let there = pages.contains_key(&page);
            assert_eq!(checkpoint.locate(space, page).is_some(), there, "{page:#x}");
        }
    }
    assert_eq!(checkpoint.content(), content);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 48 } else { 512 }))]

    #[test]
    fn every_checkpoint_of_a_chain_is_whole(steps in proptest::collection::vec(step(), 1..8)) {
        let (_dir, job) = common::job();
        let mut models: BTreeMap<u64, Memory> = BTreeMap::new();
        for step in &steps {
            let base = checkpoint_of(&job, &models, step.base);
            let memory = base.as_ref().map(|base| models[&base.sequence()].clone()).unwrap_or_default();
            let (sequence, memory) = take(&job, step, base.as_ref(), memory);
            models.insert(sequence, memory);
            job.prune(&Keep::last(step.keep), false).unwrap();
            while models.len() > step.keep {
                models.pop_first();
            }
            if step.compact {
                job.compact(&|| true).unwrap();
                prop_assert_eq!(job.compactable().unwrap(), 0);
            }
            for (&sequence, memory) in &models {
                check(&job.checkpoint(Some(sequence)).unwrap(), memory);
            }
        }
        prop_assert_eq!(job.verify(None).unwrap(), []);
    }
}

/// A checkpoint of pages with random content in space 1.
fn random(job: &Job, base: Option<&Checkpoint>, pages: &[(u64, u64)]) -> images::Committed {
    let writer = job.begin(Compression::None, base).unwrap();
    let put: BTreeMap<u64, Vec<u8>> = pages
        .iter()
        .map(|&(number, seed)| (number, common::page(2, seed)))
        .collect();
    if let Some(base) = base {
        let numbers = PageSet::from_iter(put.keys().copied());
        writer.keep(1, base.pages(1) - numbers).unwrap();
    }
    common::put(&writer, &Memory::from([(1, put)]), FRAME_PAGES).unwrap();
    writer
        .commit(common::snapshot(), proto::Statistics::default())
        .unwrap()
}

#[test]
fn what_is_kept_is_not_written_again() {
    let (_dir, job) = common::job();
    let all: Vec<_> = (0..1000).map(|page| (page, page)).collect();
    let first = random(&job, None, &all);
    assert_eq!((first.pages, first.kept), (1000, 0));
    let base = job.checkpoint(None).unwrap();
    let second = random(&job, Some(&base), &[(10, 5000), (999, 5001)]);
    assert_eq!((second.pages, second.kept), (2, 998));
    assert!(second.bytes < 2 * 4096 + 8192, "{}", second.bytes);
    let statistics = job.checkpoint(None).unwrap().manifest().statistics.clone();
    let statistics = statistics.unwrap();
    assert_eq!((statistics.base, statistics.kept), (1, 998));

    // Nothing was written: no segment.
    let segments = common::segments(&job).len();
    let third = random(&job, Some(&job.checkpoint(None).unwrap()), &[]);
    assert_eq!((third.pages, third.kept), (0, 1000));
    assert_eq!(common::segments(&job).len(), segments);

    // All was: the older segments are not named any more.
    random(&job, Some(&job.checkpoint(None).unwrap()), &all[1..]);
    assert_eq!(job.checkpoint(None).unwrap().manifest().segments.len(), 2);
    let kept = PageSet::from_iter([0]);
    let writer = job.begin(Compression::None, Some(&base)).unwrap();
    writer.keep(1, kept.clone()).unwrap();
    writer.forget(1, &kept);
    writer
        .commit(common::snapshot(), proto::Statistics::default())
        .unwrap();
    assert_eq!(job.checkpoint(None).unwrap().manifest().segments, []);
}

#[test]
fn rules_of_keeping() {
    let (_dir, job) = common::job();
    random(&job, None, &[(1, 1), (2, 2)]);
    let base = job.checkpoint(None).unwrap();
    let commit =
        |writer: images::Writer| writer.commit(common::snapshot(), proto::Statistics::default());
    for (base, space, page) in [(None, 1, 1), (Some(&base), 1, 3), (Some(&base), 2, 1)] {
        let writer = job.begin(Compression::None, base).unwrap();
        let kept = writer.keep(space, PageSet::from_iter([page]));
        assert!(matches!(kept, Err(Error::Pages { .. })));
        assert!(matches!(commit(writer), Err(Error::Incomplete { .. })));
    }
    // Put, forgotten, and then as before: nobody means that.
    let writer = job.begin(Compression::None, Some(&base)).unwrap();
    let pages = PageSet::from_iter([1]);
    writer.put(1, 0, &[1, 2], &vec![7; 2 * PAGE_SIZE]).unwrap();
    writer.forget(1, &pages);
    writer.keep(1, pages).unwrap();
    assert!(matches!(commit(writer), Err(Error::Pages { .. })));
    assert_eq!(job.sequences().unwrap(), [1]);
}

#[test]
fn a_base_that_was_removed_is_refused() {
    let (_dir, job) = common::job();
    random(&job, None, &[(1, 1)]);
    let base = job.checkpoint(None).unwrap();
    job.prune(&Keep::last(0), false).unwrap();
    let begun = job.begin(Compression::None, Some(&base));
    assert!(matches!(begun, Err(Error::NoBase { .. })));
    // Another one with the same number is another one.
    random(&job, None, &[(1, 2)]);
    let begun = job.begin(Compression::None, Some(&base));
    assert!(matches!(begun, Err(Error::NoBase { .. })));
    // One that is removed while its pages are still needed can be built upon.
    let base = job.checkpoint(None).unwrap();
    random(&job, Some(&base), &[]);
    job.prune(&Keep::last(1), false).unwrap();
    random(&job, Some(&base), &[(5, 5)]);
    let memory = common::read(&job.checkpoint(None).unwrap()).unwrap();
    let expected = [(1, common::page(2, 2)), (5, common::page(2, 5))];
    assert_eq!(memory, Memory::from([(1, BTreeMap::from(expected))]));
}

/// Three frames of random pages, twice the same, for two spaces.
fn twins(seed: u64) -> Memory {
    let pages: BTreeMap<_, _> = (0..3 * FRAME_PAGES as u64)
        .map(|page| (page, common::page(2, seed + page % FRAME_PAGES as u64)))
        .collect();
    Memory::from([(1, pages.clone()), (2, pages)])
}

#[test]
fn what_is_the_same_is_stored_once() {
    let frame = (FRAME_PAGES * PAGE_SIZE) as u64;
    let (_dir, job) = common::job();
    let memory = twins(0);
    let first = common::write(&job, Compression::None, &memory).unwrap();
    assert_eq!(first.pages, 6 * FRAME_PAGES as u64);
    assert!(first.bytes < frame + 16384, "{}", first.bytes);
    assert_eq!(job.verify(None).unwrap(), []);
    check(&job.checkpoint(None).unwrap(), &memory);

    // Written again as it was: nothing new. Part of it: another frame, which has to be written.
    let base = job.checkpoint(None).unwrap();
    let mut writer = job.begin(Compression::None, Some(&base)).unwrap();
    // Whichever round it is, as long as no earlier one had them.
    writer.next_round();
    common::put(&writer, &memory, FRAME_PAGES).unwrap();
    let again = writer
        .commit(common::snapshot(), proto::Statistics::default())
        .unwrap();
    assert_eq!((again.pages, again.kept), (0, first.pages));
    assert!(again.bytes < 8192, "{}", again.bytes);
    check(&job.checkpoint(None).unwrap(), &memory);

    // In a later round what the base has may be older than what an earlier round has.
    let mut writer = job.begin(Compression::None, Some(&base)).unwrap();
    common::put(&writer, &twins(7), FRAME_PAGES).unwrap();
    writer.next_round();
    common::put(&writer, &memory, FRAME_PAGES).unwrap();
    writer
        .commit(common::snapshot(), proto::Statistics::default())
        .unwrap();
    check(&job.checkpoint(None).unwrap(), &memory);

    // One place, two processes' pages: damage hits both.
    let segment = common::segments(&job)
        .into_iter()
        .max_by_key(|path| std::fs::metadata(path).unwrap().len());
    let segment = segment.unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    // Behind the frame of the first round.
    bytes[PAGE_SIZE + frame as usize + 7] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let damage = job.verify(Some(3)).unwrap();
    assert!(
        damage
            .iter()
            .any(|hit| hit.pid == Some(7) && hit.addresses.as_ref().unwrap().start < 4096)
    );
    assert!(
        damage
            .iter()
            .any(|hit| hit.addresses.as_ref().unwrap().start == 0x7000_0000)
    );
}

#[test]
fn damage_to_an_old_segment_hurts_those_that_use_it() {
    let (_dir, job) = common::job();
    let all: Vec<_> = (0..200).map(|page| (page, page)).collect();
    random(&job, None, &all);
    let old = common::segments(&job);
    // The first frame: 2 still has most of it, 3 nothing, and 4, which is based on 2, one page.
    let base = job.checkpoint(None).unwrap();
    random(&job, Some(&base), &[(0, 1000)]);
    random(&job, None, &all);
    let base = job.checkpoint(Some(2)).unwrap();
    let written: Vec<_> = (0..63).map(|page| (page, 2000 + page)).collect();
    random(&job, Some(&base), &written);
    assert_eq!(job.verify(None).unwrap(), []);
    let mut bytes = std::fs::read(&old[0]).unwrap();
    // Chunks come backwards, and the last of four has 8 pages.
    bytes[(1 + 8 + 2 * FRAME_PAGES) * PAGE_SIZE + 10] ^= 1;
    std::fs::write(&old[0], bytes).unwrap();
    let damage = job.verify(None).unwrap();
    let hit: Vec<_> = damage
        .iter()
        .map(|hit| (hit.checkpoint, hit.addresses.clone().unwrap()))
        .collect();
    let page = PAGE_SIZE as u64;
    assert_eq!(
        hit,
        [
            (1, 0..64 * page),
            (2, page..64 * page),
            (4, 63 * page..64 * page)
        ]
    );
    assert!(damage.iter().all(|hit| hit.file == old[0]));

    std::fs::remove_file(&old[0]).unwrap();
    let damage = job.verify(None).unwrap();
    let hit: Vec<_> = damage.iter().map(|hit| hit.checkpoint).collect();
    assert_eq!(hit, [1, 2, 4]);
    check(
        &job.checkpoint(Some(3)).unwrap(),
        &Memory::from([(
            1,
            all.iter()
                .map(|&(n, seed)| (n, common::page(2, seed)))
                .collect(),
        )]),
    );
}
