//! Every way of tracking that this kernel has must tell of the same writes.

use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::unistd::{pipe, read, write};

use super::{Child, Region};
use crate::track::{FEATURES, WriteProtect, WriteTracker, Written};
use crate::{PAGE_SIZE, PageSet, SoftDirty, soft_dirty_works, uffd};

const BLOCK: usize = 512;
/// The descriptor of a child's userfaultfd, where its kernel gives it one.
const UFFD: i32 = 200;

/// A child that takes one step after the other, when told to.
struct Steps<'a> {
    child: Child,
    region: &'a Region,
    go: std::fs::File,
    done: std::fs::File,
    tracker: Box<dyn WriteTracker>,
}

impl<'a> Steps<'a> {
    fn next(&mut self) {
        self.go.write_all(b"g").unwrap();
        self.done.read_exact(&mut [0]).unwrap();
    }

    /// The pages of the region that are told as written or, of `known`, as given back; by number within the region.
    fn changed(&mut self, known: Range<usize>) -> Vec<u64> {
        let areas = self.areas();
        let mut written = Written::default();
        self.tracker.collect(&areas, false, &mut written).unwrap();
        let first = self.region.address(0) / PAGE_SIZE;
        let known = PageSet::from_iter(known.map(|page| first + page as u64));
        let mut left = known.clone();
        written.subtract_from(&mut left);
        let mut changed = self.tracker.vanished(&known).unwrap();
        changed |= known - left;
        for run in written.runs(&self.region.all()) {
            changed.insert_range(run.start / PAGE_SIZE..run.end / PAGE_SIZE);
        }
        changed.iter().map(|page| page - first).collect()
    }

    /// The mappings that the region lies in.
    fn areas(&self) -> Vec<Range<u64>> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.pid())).unwrap();
        let all = self.region.all();
        let mappings = maps.lines().map(|line| {
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            hex(start).max(all.start)..hex(end).min(all.end)
        });
        mappings.filter(|area| area.start < area.end).collect()
    }
}

/// Runs `check` for each way of tracking, on a child that has laid out the region and takes `steps`.
fn each_way(
    region: &Region,
    setup: impl Fn(),
    steps: &[&dyn Fn()],
    check: impl Fn(&mut Steps<'_>),
) {
    for way in [soft_dirty, write_protect] {
        let (listen, go) = pipe().unwrap();
        let (done, tell) = pipe().unwrap();
        let child = Child::acting(
            || {
                make_userfaultfd();
                setup();
            },
            || {
                for step in steps {
                    let _ = read(&listen, &mut [0]);
                    step();
                    let _ = write(&tell, b"d");
                }
            },
        );
        if let Some(tracker) = way(child.pid()) {
            check(&mut Steps {
                child,
                region,
                go: go.into(),
                done: done.into(),
                tracker,
            });
        }
    }
}

/// In the child.
fn make_userfaultfd() {
    let mut api = [uffd::API, FEATURES, 0];
    // SAFETY: makes a descriptor and agrees on its features, in three words that are there.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, uffd::FLAGS) as i32;
        if libc::ioctl(fd, uffd::UFFDIO_API as libc::Ioctl, api.as_mut_ptr()) == 0 {
            libc::dup2(fd, UFFD);
        }
    }
}

fn soft_dirty(pid: u32) -> Option<Box<dyn WriteTracker>> {
    match soft_dirty_works() {
        Ok(()) => Some(Box::new(SoftDirty::new(pid))),
        Err(why) => {
            // Past the capture of the test harness.
            let _ = writeln!(std::io::stderr(), "SKIPPED soft-dirty pages: it {why}");
            None
        }
    }
}

fn write_protect(pid: u32) -> Option<Box<dyn WriteTracker>> {
    // SAFETY: gives a descriptor or an error.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: as above.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, UFFD, 0) };
    // SAFETY: made above, and used nowhere else.
    unsafe { libc::close(pidfd as i32) };
    if fd < 0 {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED write protection: this kernel has none that is asynchronous"
        );
        return None;
    }
    // SAFETY: a descriptor just made, which nobody else knows.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    Some(Box::new(WriteProtect::new(pid, fd)))
}

fn fill(region: &Region, pages: Range<usize>) {
    pages.for_each(|page| region.fill(page, 1));
}

#[test]
fn what_is_written_is_told_once_and_nothing_else() {
    let region = Region::new(2 * BLOCK);
    let setup = || {
        fill(&region, 0..700);
    };
    let write = || {
        region.fill(3, 2);
        region.fill(600, 2);
        // Was empty.
        region.fill(900, 2);
    };
    each_way(&region, setup, &[&write, &|| region.fill(3, 3)], |child| {
        let first = child.changed(0..0);
        assert!((0..700).all(|page| first.contains(&page)), "{first:?}");
        assert_eq!(child.changed(0..700), []);
        child.next();
        assert_eq!(child.changed(0..700), [3, 600, 900]);
        child.next();
        assert_eq!(child.changed(0..700), [3]);
        assert_eq!(child.changed(0..700), []);
    });
}

#[test]
fn what_is_given_back_is_told() {
    let region = Region::new(4 * BLOCK);
    let setup = || {
        region.advise(2 * BLOCK..4 * BLOCK, libc::MADV_HUGEPAGE);
        fill(&region, 0..4 * BLOCK);
    };
    let one = || {
        region.advise(5..6, libc::MADV_DONTNEED);
        region.advise(7..8, libc::MADV_DONTNEED);
        // Shows the page of zeros.
        region.look(7);
    };
    let blocks = || {
        region.advise(BLOCK..3 * BLOCK, libc::MADV_DONTNEED);
        region.look(2 * BLOCK);
    };
    each_way(&region, setup, &[&one, &blocks], |child| {
        let _ = child.changed(0..0);
        child.next();
        let changed = child.changed(0..4 * BLOCK);
        assert!(changed.contains(&5) && changed.contains(&7), "{changed:?}");
        child.next();
        let changed = child.changed(0..4 * BLOCK);
        let all = BLOCK as u64..3 * BLOCK as u64;
        assert!(
            all.clone().all(|page| changed.contains(&page)),
            "{changed:?}"
        );
    });
}

#[test]
fn what_takes_the_place_of_something_is_told() {
    let region = Region::new(4 * BLOCK);
    let setup = || {
        fill(&region, 0..4 * BLOCK);
    };
    // A whole page table moves.
    let (from, to) = (region.address(2 * BLOCK), region.address(0));
    let bytes = BLOCK * PAGE_SIZE as usize;
    let move_block = || {
        // SAFETY: only pages of the region move and are replaced.
        unsafe {
            libc::mremap(
                from as *mut _,
                bytes,
                bytes,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                to as *mut libc::c_void,
            )
        };
    };
    let replace = || {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        region.map(
            BLOCK..BLOCK + 8,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
        );
        region.fill(BLOCK + 1, 4);
        region.look(BLOCK + 2);
    };
    each_way(&region, setup, &[&move_block, &replace], |child| {
        let _ = child.changed(0..0);
        child.next();
        let changed = child.changed(0..4 * BLOCK);
        assert!(
            (0..BLOCK as u64).all(|page| changed.contains(&page)),
            "{changed:?}"
        );
        child.next();
        let changed = child.changed(0..4 * BLOCK);
        let replaced = BLOCK as u64..BLOCK as u64 + 8;
        assert!(
            replaced.clone().all(|page| changed.contains(&page)),
            "{changed:?}"
        );
    });
}

#[test]
fn what_is_written_after_a_fork_is_told() {
    let region = Region::new(BLOCK);
    let fork_and_write = || {
        // SAFETY: the child only exits.
        if unsafe { libc::fork() } == 0 {
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
        region.fill(9, 2);
    };
    each_way(
        &region,
        || fill(&region, 0..BLOCK),
        &[&fork_and_write],
        |child| {
            let _ = child.changed(0..0);
            child.next();
            assert!(child.changed(0..BLOCK).contains(&9));
        },
    );
}
