use std::io::Write;
use std::os::fd::AsRawFd;

use nix::sys::mman::ProtFlags;

use super::{Child, Region};
use crate::pagemap::{Kind, Pagemap};
use crate::probe::Method;
use crate::{Error, PAGE_SIZE};

/// `MADV_GUARD_INSTALL` (Linux 6.13).
const GUARD_INSTALL: i32 = 102;

/// What every way of asking says, which must be the same; as page numbers within the region.
fn content(child: &Child, region: &Region, kind: Kind) -> Vec<std::ops::Range<u64>> {
    ask(child, region, |pagemap, out| {
        pagemap.content(region.all(), kind, out)
    })
}

/// Every way of asking that this kernel knows.
fn methods() -> Vec<Method> {
    let mut methods = vec![Method::entries()];
    if let Method::Scan { guards } = Method::probe() {
        methods.push(Method::Scan { guards: false });
        methods.push(Method::Scan { guards });
    }
    methods
}

fn ask(
    child: &Child,
    region: &Region,
    question: impl Fn(&Pagemap, &mut Vec<std::ops::Range<u64>>) -> Result<(), Error>,
) -> Vec<std::ops::Range<u64>> {
    let mut answers: Vec<Vec<_>> = methods()
        .into_iter()
        .map(|method| {
            let mut out = Vec::new();
            question(
                &Pagemap::with_method(child.pid(), method).unwrap(),
                &mut out,
            )
            .unwrap();
            let page = |address: u64| (address - region.address(0)) / PAGE_SIZE;
            out.into_iter()
                .map(|run| page(run.start)..page(run.end))
                .collect()
        })
        .collect();
    answers.dedup();
    assert_eq!(answers.len(), 1, "ways of asking differ: {answers:?}");
    answers.remove(0)
}

#[test]
fn anonymous_pages_are_those_written() {
    let region = Region::new(64);
    let child = Child::new(|| {
        region.fill(1, 1);
        region.fill(2, 2);
        region.look(5);
        region.fill(6, 0);
        region.fill(63, 3);
    });
    assert_eq!(
        content(&child, &region, Kind::Anonymous),
        [1..3, 6..7, 63..64]
    );
}

#[test]
fn content_behind_prot_none_counts() {
    let region = Region::new(16);
    let child = Child::new(|| {
        region.fill(3, 1);
        region.protect(2..5, ProtFlags::PROT_NONE);
    });
    assert_eq!(content(&child, &region, Kind::Anonymous), [3..4]);
}

#[test]
fn of_a_private_file_mapping_only_changed_pages_count() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 8 * PAGE_SIZE as usize]).unwrap();
    let region = Region::new(8);
    let fd = file.as_raw_fd();
    let child = Child::new(|| {
        assert!(region.map(
            0..8,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE,
            fd
        ));
        region.look(1);
        region.fill(2, 1);
        region.look(3);
        region.fill(4, 0);
    });
    assert_eq!(content(&child, &region, Kind::PrivateFile), [2..3, 4..5]);
}

#[test]
fn guard_pages_are_not_content() {
    let region = Region::new(32);
    if !region.advise(0..1, GUARD_INSTALL) {
        return; // A kernel without them.
    }
    let child = Child::new(|| {
        region.fill(8, 1);
        region.fill(10, 1);
        region.advise(9..12, GUARD_INSTALL);
        region.fill(12, 1);
    });
    assert_eq!(content(&child, &region, Kind::Anonymous), [8..9, 12..13]);
    for method in [Method::probe(), Method::Scan { guards: false }] {
        let pagemap = Pagemap::with_method(child.pid(), method).unwrap();
        let mut everywhere = Vec::new();
        pagemap
            .guards(0..0x7fff_ffff_f000, &mut everywhere)
            .unwrap();
        for run in [region.range(0..1), region.range(9..12)] {
            assert!(everywhere.contains(&run), "{everywhere:x?}");
        }
    }
}

#[test]
fn huge_pages_count_whole() {
    let region = Region::new(2048);
    let child = Child::new(|| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
        if region.map(0..1024, libc::PROT_READ | libc::PROT_WRITE, flags, -1) {
            region.fill(520, 1);
        }
    });
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", child.pid())).unwrap();
    if smaps.contains("KernelPageSize:     2048 kB") {
        assert_eq!(content(&child, &region, Kind::Huge), [512..1024]);
    }
}

#[test]
fn transparent_huge_pages_count_whole() {
    let region = Region::new(1024);
    let child = Child::new(|| {
        region.advise(0..1024, libc::MADV_HUGEPAGE);
        region.fill(600, 1);
    });
    let found = content(&child, &region, Kind::Anonymous);
    assert!(found == [512..1024] || found == [600..601], "{found:?}");
}

#[test]
fn a_reservation_of_terabytes_is_passed_over() {
    let region = Region::new(3 << 28); // 3 TiB
    let child = Child::new(|| region.protect(0..3 << 28, ProtFlags::PROT_NONE));
    assert!(content(&child, &region, Kind::Anonymous).is_empty());
}

#[test]
fn a_limit_is_kept_and_can_be_continued() {
    let region = Region::new(256);
    let child = Child::new(|| (0..256).step_by(2).for_each(|page| region.fill(page, 1)));
    for method in methods() {
        let pagemap = Pagemap::with_method(child.pid(), method).unwrap();
        let mut out = Vec::new();
        let (stopped, left) = pagemap
            .some_content(region.all(), Kind::Anonymous, 100, &mut out)
            .unwrap();
        assert_eq!((out.len(), left), (100, 0));
        let (stopped, left) = pagemap
            .some_content(stopped..region.all().end, Kind::Anonymous, 100, &mut out)
            .unwrap();
        assert_eq!((out.len(), stopped, left), (128, region.all().end, 72));
    }
}

#[test]
fn a_process_that_ended_is_named() {
    let child = Child::new(|| ());
    let pid = child.pid();
    drop(child);
    assert!(matches!(Pagemap::open(pid), Err(Error::Gone { pid: gone }) if gone == pid));
}
