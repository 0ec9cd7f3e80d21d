//! Mappings of our own that have the flags mappings of jobs have, to learn those from.

use std::os::fd::OwnedFd;

use crate::sys::{self, Area};

/// Linux 6.11.
const MAP_DROPPABLE: i32 = 0x08;
const MLOCK_ONFAULT: u32 = 1;
const HUGE_PAGE: usize = 2 << 20;
const PAGE: usize = 4096;

/// They are there as long as this is.
pub(crate) struct Samples {
    _areas: Vec<Area>,
    /// Which watches one of them.
    _watch: Option<OwnedFd>,
}

impl Samples {
    /// Makes as many as the kernel allows: what it does not have, no job has either.
    pub(crate) fn make() -> Self {
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let write = libc::PROT_READ | libc::PROT_WRITE;
        let plain = [
            (PAGE, libc::PROT_NONE, private),
            (PAGE, libc::PROT_READ | libc::PROT_EXEC, private),
            (PAGE, write, libc::MAP_SHARED | libc::MAP_ANONYMOUS),
            (PAGE, write, private | libc::MAP_NORESERVE),
            (PAGE, write, private | libc::MAP_GROWSDOWN),
            (PAGE, write, MAP_DROPPABLE | libc::MAP_ANONYMOUS),
            (
                HUGE_PAGE,
                write,
                private | libc::MAP_NORESERVE | libc::MAP_HUGETLB,
            ),
        ];
        let advised = [
            libc::MADV_DONTFORK,
            libc::MADV_WIPEONFORK,
            libc::MADV_DONTDUMP,
            libc::MADV_HUGEPAGE,
            libc::MADV_NOHUGEPAGE,
            libc::MADV_MERGEABLE,
            libc::MADV_SEQUENTIAL,
            libc::MADV_RANDOM,
        ];
        let mut areas: Vec<Area> = plain
            .into_iter()
            .filter_map(|(length, prot, flags)| Area::map(length, prot, flags).ok())
            .collect();
        for advice in advised {
            areas.extend(
                Area::map(PAGE, write, private)
                    .ok()
                    .filter(|area| area.advise(advice).is_ok()),
            );
        }
        areas.extend(
            Area::map(PAGE, write, private)
                .ok()
                .filter(|area| area.lock(MLOCK_ONFAULT).is_ok()),
        );
        let watched = Area::map(PAGE, write, private).ok();
        let watch = watched.as_ref().and_then(|area| sys::watch(area).ok());
        areas.extend(watched);
        Self {
            _areas: areas,
            _watch: watch,
        }
    }
}

/// Start, end and flags of each mapping in the text of smaps.
pub(crate) fn flags(smaps: &str) -> impl Iterator<Item = ((u64, u64), &str)> {
    let mut range = None;
    smaps.lines().filter_map(move |line| {
        if let Some(names) = line.strip_prefix("VmFlags:") {
            return Some((range?, names.trim()));
        }
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        range = Some((hex(start)?, hex(end)?));
        None
    })
}
