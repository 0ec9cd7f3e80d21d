//! What goes in comes out.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::collections::BTreeMap;

use common::Memory;
use images::{Compression, FRAME_PAGES, Keep, PAGE_SIZE, PageSet, proto};
use proptest::prelude::*;

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::None),
        Just(Compression::Fast),
        Just(Compression::Max)
    ]
}

fn memory() -> impl Strategy<Value = Memory> {
    let number = prop_oneof![0u64..300, (1u64 << 35) - 200..1 << 35, 0u64..1 << 52];
    let pages = proptest::collection::btree_map(number, (0u8..4, 0u64..1000), 0..200);
    proptest::collection::btree_map(0u64..5, pages, 0..4).prop_map(|spaces| {
        let page = |(number, (kind, seed))| (number, common::page(kind, seed));
        spaces
            .into_iter()
            .map(|(space, pages)| (space, pages.into_iter().map(page).collect()))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn memory_comes_back(how in compression(), memory in memory(), order in any::<u64>(), size in 1..=FRAME_PAGES) {
        let (_dir, job) = common::job();
        let writer = job.begin(how, None).unwrap();
        let mut chunks = Vec::new();
        for (&space, pages) in &memory {
            let numbers: Vec<u64> = pages.keys().copied().collect();
            for (chunk, numbers) in numbers.chunks(size).enumerate() {
                chunks.push((space, chunk as u64, numbers.to_vec()));
            }
        }
        chunks.sort_by_key(|(space, chunk, _)| blake3::hash(format!("{order} {space} {chunk}").as_bytes()).as_bytes().to_owned());
        // Two threads, since that is how pages arrive.
        let (left, right) = chunks.split_at(chunks.len() / 2);
        std::thread::scope(|scope| {
            for part in [left, right] {
                let (writer, memory) = (&writer, &memory);
                scope.spawn(move || {
                    for (space, chunk, numbers) in part {
                        let data: Vec<u8> = numbers.iter().flat_map(|number| &memory[space][number]).copied().collect();
                        writer.put(*space, *chunk, numbers, &data).unwrap();
                    }
                });
            }
        });
        let committed = writer.commit(common::snapshot(), proto::Statistics::default()).unwrap();
        let zero = |page: &&Vec<u8>| page.iter().all(|&byte| byte == 0);
        let content = memory.values().flat_map(BTreeMap::values).filter(|page| !zero(page)).count();
        prop_assert_eq!(committed.pages, content as u64);

        let checkpoint = job.checkpoint(None).unwrap();
        let has: Memory = memory.into_iter().filter(|(_, pages)| !pages.is_empty()).collect();
        prop_assert_eq!(common::read(&checkpoint).unwrap(), has);
        prop_assert_eq!(checkpoint.bytes(), committed.bytes);
        prop_assert_eq!(checkpoint.snapshot(), &common::snapshot());
        prop_assert_eq!(job.verify(None).unwrap(), []);
    }
}

#[test]
fn raw_pages_lie_on_page_boundaries() {
    let (_dir, job) = common::job();
    common::write(&job, Compression::Fast, &common::sample()).unwrap();
    let segment = std::fs::read(&common::segments(&job)[0]).unwrap();
    let random = common::page(2, 5);
    assert!(segment.chunks(PAGE_SIZE).any(|block| block == random));
}

#[test]
fn a_checkpoint_may_lie_in_several_segments() {
    let (_dir, job) = common::job();
    let first = common::sample();
    common::write(&job, Compression::Fast, &first).unwrap();
    // Written since: a page in the middle of a frame, one that was zero; and one that became zero.
    let mut second = Memory::new();
    second.insert(
        1,
        BTreeMap::from([(0x11, common::page(2, 77)), (0x12, common::page(1, 4))]),
    );
    common::write(&job, Compression::Fast, &second).unwrap();

    let (one, two) = (
        job.checkpoint(Some(1)).unwrap(),
        job.checkpoint(Some(2)).unwrap(),
    );
    let mut manifest = one.manifest().clone();
    manifest.sequence = 3;
    manifest.segments.extend(two.manifest().segments.clone());
    let bytes = |pages: &[u64]| {
        let mut bytes = Vec::new();
        PageSet::from_iter(pages.iter().copied())
            .serialize_into(&mut bytes)
            .unwrap();
        bytes
    };
    // The newest first; of the older one 0x10 and 0x7fffffff0 are left.
    let layer = |segment| proto::Layer {
        segment,
        section: 0,
    };
    manifest.spaces[0].layers = vec![layer(1), layer(0)];
    manifest.spaces[0].zero = bytes(&[0x400]);
    common::write_manifest(
        &common::manifest_path(&job, 3),
        &proto::Features::default(),
        &manifest,
    );

    let mut expected = first.clone();
    expected
        .get_mut(&1)
        .unwrap()
        .extend(second.remove(&1).unwrap());
    expected
        .get_mut(&1)
        .unwrap()
        .insert(0x400, vec![0; PAGE_SIZE]);
    assert_eq!(
        common::read(&job.checkpoint(Some(3)).unwrap()).unwrap(),
        expected
    );
    assert_eq!(job.verify(None).unwrap(), []);

    // Each is complete by itself: what another does not need may go, what it needs stays.
    let pruned = job.prune(&Keep::last(1), false).unwrap();
    assert_eq!((pruned.checkpoints, pruned.segments), (vec![1, 2], 0));
    assert_eq!(
        common::read(&job.checkpoint(None).unwrap()).unwrap(),
        expected
    );

    // What is gone is gone, and cannot be zero at the same time.
    let mut write = |absent: &[u64]| {
        manifest.spaces[0].absent = bytes(absent);
        manifest.sequence += 1;
        common::write_manifest(
            &common::manifest_path(&job, manifest.sequence),
            &proto::Features::default(),
            &manifest,
        );
        job.checkpoint(None)
    };
    expected.get_mut(&1).unwrap().remove(&0x11);
    assert_eq!(common::read(&write(&[0x11]).unwrap()).unwrap(), expected);
    let error = write(&[0x400]).unwrap_err();
    assert!(
        error.is_damage() && error.to_string().contains("is there and is not"),
        "{error}"
    );
}

#[test]
fn broken_rules_are_refused_and_keep_the_checkpoint_from_counting() {
    let (_dir, job) = common::job();
    let data = vec![1; 2 * PAGE_SIZE];
    let long: Vec<u64> = (0..=FRAME_PAGES as u64).collect();
    for (pages, data) in [
        (&[2, 1][..], &data[..]),
        (&[1, 1], &data),
        (&[1], &data),
        (&[1, 1 << 52], &data),
        (&long, &vec![1; long.len() * PAGE_SIZE]),
    ] {
        let writer = job.begin(Compression::None, None).unwrap();
        assert!(writer.put(1, 0, pages, data).is_err(), "{pages:?}");
        assert!(
            writer
                .commit(common::snapshot(), proto::Statistics::default())
                .is_err()
        );
    }
    let put = |chunks: &[(u64, [u64; 2])]| {
        let writer = job.begin(Compression::None, None)?;
        for (chunk, pages) in chunks {
            writer.put(1, *chunk, pages, &data)?;
        }
        writer.commit(common::snapshot(), proto::Statistics::default())
    };
    assert!(put(&[(0, [1, 2]), (1, [2, 3])]).is_err(), "a page twice");
    assert!(
        put(&[(0, [1, 5]), (1, [2, 9])]).is_err(),
        "chunks that interleave"
    );
    assert!(
        put(&[(1, [1, 2]), (0, [3, 4])]).is_err(),
        "chunks out of order"
    );
    assert_eq!(job.sequences().unwrap(), []);
    assert_eq!(common::segments(&job), Vec::<std::path::PathBuf>::new());
    assert_eq!(put(&[(1, [3, 4]), (0, [1, 2])]).unwrap().sequence, 1);
}

#[test]
fn a_large_checkpoint_comes_back_from_several_segments() {
    let (_dir, job) = common::job();
    let writer = job.begin(Compression::None, None).unwrap();
    let chunk = |index: u64| {
        let numbers: Vec<u64> = (index * 64..index * 64 + 64).collect();
        let data: Vec<u8> = numbers.iter().flat_map(|n| common::page(2, *n)).collect();
        (numbers, data)
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let writer = &writer;
            scope.spawn(move || {
                for index in (thread..200).step_by(4) {
                    let (numbers, data) = chunk(index);
                    writer.put(1, index, &numbers, &data).unwrap();
                }
            });
        }
    });
    writer
        .commit(common::snapshot(), proto::Statistics::default())
        .unwrap();
    let checkpoint = job.checkpoint(None).unwrap();
    let mut out = Vec::new();
    let mut frames: Vec<_> = checkpoint.iter(1).collect();
    frames.sort_by_key(|frame| frame.pages[0]);
    assert_eq!(frames.len(), 200);
    for (index, frame) in (0..).zip(&frames) {
        checkpoint.read(frame, &mut out).unwrap();
        assert_eq!((&frame.pages, &out), (&chunk(index).0, &chunk(index).1));
    }
}
