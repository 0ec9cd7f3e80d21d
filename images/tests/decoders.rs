//! The decoders, fed with what is almost right: they refuse it or take it, and never panic or take much memory.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use images::proto::{self, Codec};
use images::{Compression, PAGE_SIZE, PageSet, decode};
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message as _;

#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Repeat(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let special = prop_oneof![Just(0), Just(0xff), Just(0x7f), Just(0x80), any::<u8>()];
    prop_oneof![
        4 => (any::<Index>(), special).prop_map(|(at, to)| Change::Set(at, to)),
        4 => (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => (any::<Index>(), proptest::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Repeat(from, to)),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let length = bytes.len();
        if length == 0 {
            break;
        }
        match change {
            Change::Set(at, to) => bytes[at.index(length)] = *to,
            Change::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Change::Cut(at) => bytes.truncate(at.index(length)),
            Change::Insert(at, new) => {
                drop(bytes.splice(at.index(length)..at.index(length), new.iter().copied()));
            }
            Change::Repeat(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                bytes.extend_from_within(from.min(to)..from.max(to));
            }
        }
    }
    bytes
}

fn manifest() -> proto::Manifest {
    let (_dir, job) = common::job();
    common::write(&job, Compression::Fast, &common::sample()).unwrap();
    job.checkpoint(None).unwrap().manifest().clone()
}

/// The footer of a small segment, and where its frames end.
fn footer() -> (Vec<u8>, u64) {
    let (_dir, job) = common::job();
    common::write(&job, Compression::Fast, &common::sample()).unwrap();
    let segment = std::fs::read(&common::segments(&job)[0]).unwrap();
    let trailer = segment.len() - 48;
    let length = u64::from_le_bytes(segment[trailer..trailer + 8].try_into().unwrap()) as usize;
    (
        segment[trailer - length..trailer].to_vec(),
        (trailer - length) as u64,
    )
}

/// Another segment below the one that there is, and a page of it gone.
fn layered() -> proto::Manifest {
    let mut manifest = manifest();
    manifest.segments.extend_from_within(..);
    manifest.segments[1].id = vec![7; 16];
    for space in &mut manifest.spaces {
        space.layers.extend_from_within(..);
        space.layers[1].segment = 1;
    }
    let gone = PageSet::from_iter([0x11]);
    gone.serialize_into(&mut manifest.spaces[0].absent).unwrap();
    manifest
}

#[test]
fn what_is_right_is_taken() {
    let manifest = manifest();
    assert_eq!(
        decode::manifest(&common::encode_manifest(
            &proto::Features::default(),
            &manifest
        ))
        .unwrap(),
        manifest
    );
    let (footer, end) = footer();
    assert_eq!(decode::footer(&footer, end).unwrap(), 2);
    let layers = |manifest: &proto::Manifest| {
        decode::layers(&manifest.encode_to_vec(), &footer, end).unwrap()
    };
    assert_eq!(layers(&manifest), 6);
    assert_eq!(layers(&layered()), 5, "one is gone");
}

#[test]
fn absurd_numbers_are_refused() {
    let table = |offset, length, pages, codec| proto::Footer {
        frames: Some(proto::FrameTable {
            offset: vec![offset],
            length: vec![length],
            pages: vec![pages],
            codec: vec![codec],
            crc: vec![0],
        }),
        sections: vec![],
    };
    for footer in [
        table(64, u32::MAX, 1, 0),
        table(64, u32::MAX, u32::MAX, 1),
        table(u64::MAX, 4096, 1, 0),
        table(u64::MAX - 4095, 4096, 1, 0),
        table(0, 4096, 1, 0),
        table(64, 4096, 0, 0),
        table(64, 65 * 4096, 65, 0),
        table(64, 0, 1, 1),
        table(64, 4096, 1, 1),
        table(64, 4096, 1, 7),
        table(64, 4096, 1, -1),
    ] {
        assert!(
            decode::footer(&footer.encode_to_vec(), 1 << 20).is_err(),
            "{footer:?}"
        );
    }
    // A container of runs would unfold to 8 KiB for every ten bytes.
    assert!(
        decode::page_set(&[
            1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 59, 48, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff
        ])
        .is_err()
    );
    assert!(decode::page_set(&[0xff; 64]).is_err());
}

/// Nesting as deep as a message allows.
#[test]
fn deep_nesting_is_refused() {
    let mut bytes = Vec::new();
    for _ in 0..100_000 {
        bytes.extend_from_slice(&[0x33, 0x0b]);
    }
    assert!(decode::records(&bytes).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn manifests(changes in proptest::collection::vec(change(), 1..8)) {
        let manifest = manifest_once();
        let whole = common::encode_manifest(&proto::Features::default(), manifest);
        let bytes = changed(whole.clone(), &changes);
        if bytes != whole {
            prop_assert!(decode::manifest(&bytes).is_err());
        }
        let _ = decode::records(&changed(manifest.encode_to_vec(), &changes));
    }

    #[test]
    fn footers(changes in proptest::collection::vec(change(), 1..8)) {
        let (footer, end) = footer_once();
        let _ = decode::footer(&changed(footer.clone(), &changes), *end);
    }

    #[test]
    fn layers(in_records in proptest::collection::vec(change(), 0..4), in_footer in proptest::collection::vec(change(), 0..4)) {
        let (footer, end) = footer_once();
        let records = changed(layered_once().clone(), &in_records);
        let _ = decode::layers(&records, &changed(footer.clone(), &in_footer), *end);
    }

    #[test]
    fn page_sets(pages in proptest::collection::btree_set(0u64..1 << 36, 0..300), changes in proptest::collection::vec(change(), 0..6)) {
        let set = PageSet::from_iter(pages);
        let mut good = Vec::new();
        set.serialize_into(&mut good).unwrap();
        let bytes = changed(good.clone(), &changes);
        if let Ok(read) = decode::page_set(&bytes) {
            // What is taken is what it says: ascending, once each, and written the same way again.
            prop_assert!(read.iter().zip(read.iter().skip(1)).all(|(a, b)| a < b));
            let mut again = Vec::new();
            read.serialize_into(&mut again).unwrap();
            prop_assert!(again == bytes || bytes.is_empty());
        }
    }

    #[test]
    fn frames(kind in 0u8..4, pages in 1usize..=64, changes in proptest::collection::vec(change(), 0..4), codec in 0..2) {
        let data: Vec<u8> = (0..pages as u64).flat_map(|seed| common::page(kind, seed)).collect();
        let codec = if codec == 0 { Codec::Raw } else { Codec::Zstd };
        let good = if codec == Codec::Raw { data.clone() } else { zstd::bulk::compress(&data, 1).unwrap() };
        let crc = crc32c::crc32c(&good);
        let mut out = Vec::new();
        let bytes = changed(good.clone(), &changes);
        if bytes == good {
            decode::frame(codec, pages, crc, &bytes, &mut out).unwrap();
            prop_assert_eq!(&out, &data);
        } else {
            prop_assert!(decode::frame(codec, pages, crc, &bytes, &mut out).is_err());
        }
        // Somebody who means it sets the checksum right.
        if decode::frame(codec, pages, crc32c::crc32c(&bytes), &bytes, &mut out).is_ok() {
            prop_assert_eq!(out.len(), pages * PAGE_SIZE);
        }
    }
}

fn manifest_once() -> &'static proto::Manifest {
    static ONCE: std::sync::OnceLock<proto::Manifest> = std::sync::OnceLock::new();
    ONCE.get_or_init(manifest)
}

fn layered_once() -> &'static Vec<u8> {
    static ONCE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    ONCE.get_or_init(|| layered().encode_to_vec())
}

fn footer_once() -> &'static (Vec<u8>, u64) {
    static ONCE: std::sync::OnceLock<(Vec<u8>, u64)> = std::sync::OnceLock::new();
    ONCE.get_or_init(footer)
}
