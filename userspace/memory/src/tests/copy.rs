use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Mutex;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::ProtFlags;
use nix::unistd::ftruncate;

use super::{Child, Region};
use crate::{Chunk, Error, Kind, Object, PAGE_SIZE, ProcessMemory, Source, copy_out};

const PAGE: usize = PAGE_SIZE as usize;

/// All pages that come out, by source and page number: their first byte. Pages are of one byte throughout.
fn copied(sources: &[Source<'_>]) -> Result<BTreeMap<(usize, u64), u8>, Error> {
    let pages = Mutex::new(BTreeMap::new());
    let order = Mutex::new(BTreeMap::new());
    let count = copy_out(sources, 2, 8, |chunk: Chunk<'_>| -> Result<(), Error> {
        assert!(!chunk.pages.is_empty() && chunk.pages.len() <= 8);
        assert_eq!(chunk.data.len(), chunk.pages.len() * PAGE);
        assert!(
            order
                .lock()
                .unwrap()
                .insert((chunk.source, chunk.index), chunk.pages.to_vec())
                .is_none()
        );
        for (page, bytes) in chunk.pages.iter().zip(chunk.data.chunks(PAGE)) {
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
            assert!(
                pages
                    .lock()
                    .unwrap()
                    .insert((chunk.source, *page), bytes[0])
                    .is_none()
            );
        }
        Ok(())
    })?;
    let pages = pages.into_inner().unwrap();
    assert_eq!(count, pages.len() as u64);
    // Chunks count up by address, without gaps.
    let mut last = (usize::MAX, 0, 0);
    for ((source, index), pages) in order.into_inner().unwrap() {
        assert!(pages.is_sorted());
        if source == last.0 {
            assert_eq!(index, last.1 + 1);
            assert!(pages[0] > last.2);
        } else {
            assert_eq!(index, 0);
        }
        last = (source, index, *pages.last().unwrap());
    }
    Ok(pages)
}

#[test]
fn processes_and_objects_come_out_whole() {
    let region = Region::new(4096);
    let pattern = |page: usize| (page % 251) as u8 + 1;
    let written = |page: usize| page % 7 != 3 && !(1000..3000).contains(&page);
    let children = [(); 2].map(|()| {
        Child::new(|| {
            (0..4096)
                .filter(|page| written(*page))
                .for_each(|page| region.fill(page, pattern(page)));
        })
    });
    let areas = [
        (region.range(0..100), Kind::Anonymous),
        (region.range(100..101), Kind::Anonymous),
        (region.range(200..4096), Kind::Anonymous),
    ];
    let object = memory_file(1 << 20);
    Object::new(object.as_fd())
        .write(
            &[0..PAGE_SIZE, 5 * PAGE_SIZE..7 * PAGE_SIZE],
            &[9; 3 * PAGE],
        )
        .unwrap();
    let data = Object::new(object.as_fd()).data(1 << 20).unwrap();
    let sources = [
        Source::Process {
            pid: children[0].pid(),
            areas: &areas,
            runs: false,
        },
        Source::Object {
            object: Object::new(object.as_fd()),
            areas: &data,
        },
        Source::Process {
            pid: children[1].pid(),
            areas: &areas,
            runs: false,
        },
        Source::Process {
            pid: children[1].pid(),
            areas: &[],
            runs: false,
        },
    ];
    let pages = copied(&sources).unwrap();
    let mut expected = BTreeMap::from([((1, 0), 9), ((1, 5), 9), ((1, 6), 9)]);
    for page in (0..101).chain(200..4096).filter(|page| written(*page)) {
        let number = region.address(page) / PAGE_SIZE;
        expected.extend([((0, number), pattern(page)), ((2, number), pattern(page))]);
    }
    assert_eq!(pages, expected);
}

#[test]
fn protected_pages_are_read_and_written_all_the_same() {
    let region = Region::new(16);
    let child = Child::new(|| {
        (0..16).for_each(|page| region.fill(page, page as u8 + 1));
        region.protect(4..6, ProtFlags::PROT_NONE);
        region.protect(9..10, ProtFlags::PROT_WRITE);
        region.protect(12..16, ProtFlags::PROT_READ);
    });
    let memory = ProcessMemory::new(child.pid());
    let runs = [region.range(1..7), region.range(8..16)];
    let mut buffer = vec![0; 14 * PAGE];
    memory.read(&runs, &mut buffer).unwrap();
    let firsts = |buffer: &[u8]| buffer.iter().copied().step_by(PAGE).collect::<Vec<_>>();
    assert_eq!(
        firsts(&buffer),
        [2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16]
    );
    buffer.iter_mut().for_each(|byte| *byte += 100);
    memory.write(&runs, &buffer).unwrap();
    buffer.fill(0);
    memory.read(&runs, &mut buffer).unwrap();
    assert_eq!(
        firsts(&buffer),
        [
            102, 103, 104, 105, 106, 107, 109, 110, 111, 112, 113, 114, 115, 116
        ]
    );
}

#[test]
fn a_page_that_cannot_be_read_is_named() {
    let region = Region::new(8);
    let empty = tempfile::tempfile().unwrap();
    let fd = empty.as_raw_fd();
    let child = Child::new(|| {
        region.map(3..4, libc::PROT_READ, libc::MAP_PRIVATE, fd);
    });
    let mut buffer = vec![0; 8 * PAGE];
    match ProcessMemory::new(child.pid()).read(&[region.all()], &mut buffer) {
        Err(Error::Read { pid, address, .. }) => {
            assert_eq!((pid, address), (child.pid(), region.address(3)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stack_does_not_grow_for_being_read() {
    let region = Region::new(16);
    let child = Child::new(|| {
        let below = region.range(0..15);
        // SAFETY: only pages of the region, whose content nobody relies on.
        unsafe { libc::munmap(below.start as *mut _, (below.end - below.start) as usize) };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN;
        region.map(15..16, libc::PROT_READ | libc::PROT_WRITE, flags, -1);
        region.fill(15, 1);
    });
    let below = region.range(14..15);
    let answer =
        ProcessMemory::of_running(child.pid()).read(std::slice::from_ref(&below), &mut [0; PAGE]);
    assert!(matches!(answer, Err(Error::Read { .. })), "{answer:?}");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.pid())).unwrap();
    assert!(maps.contains(&format!("{:x}-", below.end)), "{maps}");
}

#[test]
fn an_ended_process_is_an_error_not_a_hang() {
    let region = Region::new(8);
    let child = Child::new(|| region.fill(0, 1));
    let areas = [(region.all(), Kind::Anonymous)];
    let pid = child.pid();
    drop(child);
    let answer = copied(&[Source::Process {
        pid,
        areas: &areas,
        runs: false,
    }]);
    assert!(matches!(answer, Err(Error::Gone { .. })), "{answer:?}");
    let answer = ProcessMemory::new(pid).write(&[region.range(0..1)], &[1; PAGE]);
    assert!(matches!(answer, Err(Error::Gone { .. })), "{answer:?}");
}

#[test]
fn a_process_that_ends_midway_is_an_error() {
    let region = Region::new(4096);
    let child = Mutex::new(Some(Child::new(|| region.fill(4095, 1))));
    let areas = [(region.all(), Kind::Anonymous)];
    let pid = child.lock().unwrap().as_ref().unwrap().pid();
    let sources = [Source::Process {
        pid,
        areas: &areas,
        runs: false,
    }];
    let answer = copy_out(&sources, 1, 8, |_| -> Result<(), Error> {
        child.lock().unwrap().take();
        Ok(())
    });
    assert!(matches!(answer, Err(Error::Gone { .. })), "{answer:?}");
}

#[test]
fn a_failing_sink_ends_the_copy() {
    let region = Region::new(4096);
    let child = Child::new(|| (0..4096).for_each(|page| region.fill(page, 1)));
    let areas = [(region.all(), Kind::Anonymous)];
    let sources = [Source::Process {
        pid: child.pid(),
        areas: &areas,
        runs: false,
    }];
    let answer = copy_out(&sources, 2, 8, |chunk| match chunk.index {
        5 => Err(Error::Gone { pid: 5 }),
        _ => Ok(()),
    });
    assert!(matches!(answer, Err(Error::Gone { pid: 5 })));
}

#[test]
fn objects_read_back_what_was_written() {
    let object = memory_file(PAGE_SIZE * 10 + 100);
    let object = Object::new(object.as_fd());
    let runs = [PAGE_SIZE..2 * PAGE_SIZE, 4 * PAGE_SIZE..6 * PAGE_SIZE];
    object.write(&runs, &[3; 3 * PAGE]).unwrap();
    let mut buffer = vec![1; 11 * PAGE];
    object.read(&[0..11 * PAGE_SIZE], &mut buffer).unwrap();
    let pages: Vec<u8> = buffer.chunks(PAGE).map(|page| page[PAGE - 1]).collect();
    assert_eq!(pages, [0, 3, 0, 0, 3, 3, 0, 0, 0, 0, 0]);
}

#[test]
fn objects_of_huge_pages_are_written_too() {
    let huge = 2 << 20;
    let Ok(fd) = memfd_create(c"huge", MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB) else {
        return;
    };
    ftruncate(&fd, 2 * huge).unwrap();
    let object = Object::new(fd.as_fd());
    let run = [huge as u64 + PAGE_SIZE..huge as u64 + 3 * PAGE_SIZE];
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .unwrap();
    let written = object.write(&run, &[5; 2 * PAGE]);
    if free.trim() == "0" {
        assert!(matches!(written, Err(Error::Object { .. })), "{written:?}");
        return;
    }
    written.unwrap();
    let mut buffer = vec![1; 4 * PAGE];
    object
        .read(&[huge as u64..huge as u64 + 4 * PAGE_SIZE], &mut buffer)
        .unwrap();
    assert_eq!(
        buffer.iter().copied().step_by(PAGE).collect::<Vec<_>>(),
        [0, 5, 5, 0]
    );
}

fn memory_file(size: u64) -> OwnedFd {
    let fd = memfd_create(c"object", MFdFlags::MFD_CLOEXEC).unwrap();
    File::from(fd.try_clone().unwrap()).set_len(size).unwrap();
    fd
}
