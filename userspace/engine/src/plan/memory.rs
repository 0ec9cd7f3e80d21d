//! The mappings of a process, its program and its directories.

use std::collections::BTreeMap;
use std::ops::Range;

use images::proto::mapping::Kind;
use images::proto::open_file::Kind as FileKind;
use images::proto::{Mapping, Process, Snapshot};
use images::{PAGE_SIZE, PageSet};

use super::block::Block;
use crate::files::{Making, Numbers, Shell, directory, object};
use crate::host::Host;
use crate::ipc::segments;
use crate::{maps, vdso};

/// Which pages of a space have content.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    /// Runs of pages in order, each with how many pages come before it.
    runs: Vec<(Range<u64>, u64)>,
}

impl Content {
    pub(crate) fn new(pages: &PageSet) -> Self {
        let mut runs: Vec<(Range<u64>, u64)> = Vec::new();
        for (before, page) in (0..).zip(pages) {
            match runs.last_mut() {
                Some((run, _)) if run.end == page => run.end += 1,
                _ => runs.push((page..page + 1, before)),
            }
        }
        Self { runs }
    }

    pub(crate) fn within(&self, mapping: &Mapping) -> bool {
        self.count(&(mapping.start..mapping.end)) > 0
    }

    /// How many lie in an address range.
    pub(crate) fn count(&self, range: &Range<u64>) -> u64 {
        let below = |address: u64| {
            let page = address / PAGE_SIZE as u64;
            let begun = self.runs.partition_point(|(run, _)| run.start < page);
            match begun.checked_sub(1).and_then(|last| self.runs.get(last)) {
                Some((run, before)) => before + (page.min(run.end) - run.start),
                None => 0,
            }
        };
        below(range.end) - below(range.start)
    }
}

const PR_SET_THP_DISABLE: u64 = 41;

pub(super) fn map_memory(
    shell: &mut Shell,
    process: &Process,
    snapshot: &Snapshot,
    content: &BTreeMap<u64, Content>,
    host: &Host,
    block: &Block,
    making: &Making<'_>,
) {
    let Some(memory) = &process.memory else {
        return;
    };
    if process.thp_disabled != 0 {
        let args = [
            PR_SET_THP_DISABLE.into(),
            1.into(),
            (process.thp_disabled & !1).into(),
            0.into(),
            0.into(),
        ];
        shell
            .program
            .must(libc::SYS_prctl, &args, "use no huge pages");
    }
    let recorded = snapshot.host.as_ref().map_or(&[][..], |host| &host.vdso);
    vdso::place(
        &mut shell.program,
        memory,
        recorded,
        host,
        block.staging,
        block.spare,
    );
    // One descriptor a file, whatever the number of its mappings.
    let mut open: BTreeMap<(bool, u32), u32> = BTreeMap::new();
    segments::map(shell, &memory.mappings, &snapshot.shared, block.spare);
    let segment = |id: u32| {
        making
            .objects
            .get(id as usize - 1)
            .is_some_and(|shared| shared.segment.is_some())
    };
    for mapping in &memory.mappings {
        let filled = content
            .get(&memory.space)
            .is_some_and(|content| content.within(mapping));
        let fd = match mapping.kind() {
            Kind::Vdso | Kind::Vvar => continue,
            Kind::Anonymous => None,
            Kind::FilePrivate | Kind::FileShared => {
                Some(*open.entry((true, mapping.file)).or_insert_with(|| {
                    let file = &snapshot.files[mapping.file as usize - 1];
                    let flags = file.flags & libc::O_ACCMODE as u32;
                    match &file.kind {
                        Some(FileKind::Object(object)) => {
                            object::reopen(shell, making, object.object, process.pid, flags)
                        }
                        Some(FileKind::Regular(regular)) => shell.open_path(&regular.path, flags),
                        _ => shell.open_path("", flags),
                    }
                }))
            }
            Kind::AnonymousShared if segment(mapping.file) => continue,
            Kind::AnonymousShared => {
                let maker = making.object_maker(mapping.file);
                let place = making.object_place(mapping.file);
                if maker == process.pid {
                    Some(place)
                } else {
                    Some(
                        *open
                            .entry((false, mapping.file))
                            .or_insert_with(|| shell.fetch(maker, place)),
                    )
                }
            }
        };
        maps::map(
            &mut shell.program,
            mapping,
            fd,
            filled && matches!(mapping.kind(), Kind::Anonymous | Kind::FilePrivate),
        );
    }
    for fd in open.into_values() {
        shell.close(fd);
    }
}

pub(super) fn finish_memory(
    shell: &mut Shell,
    process: &Process,
    snapshot: &Snapshot,
    content: &BTreeMap<u64, Content>,
    ours: Range<u32>,
    executed: u32,
) {
    let Some(memory) = &process.memory else {
        return;
    };
    for mapping in &memory.mappings {
        let filled = content
            .get(&memory.space)
            .is_some_and(|content| content.within(mapping));
        let private = matches!(mapping.kind(), Kind::Anonymous | Kind::FilePrivate);
        if !matches!(mapping.kind(), Kind::Vdso | Kind::Vvar) {
            maps::finish(&mut shell.program, mapping, filled && private);
        }
    }
    if let (Some(layout), Some(_)) = (&memory.layout, executed_object(process, snapshot)) {
        maps::set_layout(&mut shell.program, layout, executed);
    }
    let args = [ours.start.into(), (ours.end - 1).into(), 0.into()];
    shell.program.must(
        libc::SYS_close_range,
        &args,
        "close the descriptors used for building",
    );
    if let Some(layout) = &memory.layout {
        let exe = snapshot.files.get((layout.exe as usize).wrapping_sub(1));
        if let Some(FileKind::Regular(regular)) = exe.and_then(|exe| exe.kind.as_ref()) {
            shell.numbers = Numbers::new(process.descriptors.iter().map(|d| d.fd));
            let fd = shell.open_path(&regular.path, libc::O_RDONLY as u32);
            maps::set_layout(&mut shell.program, layout, fd);
            shell.close(fd);
        }
    }
    work_in(shell, &process.cwd, process.cwd_deleted, &process.root);
}

/// The object that a process executes.
pub(super) fn executed_object(process: &Process, snapshot: &Snapshot) -> Option<u32> {
    let layout = process.memory.as_ref()?.layout.as_ref()?;
    let exe = snapshot.files.get((layout.exe as usize).wrapping_sub(1))?;
    match &exe.kind {
        Some(FileKind::Object(object)) => Some(object.object),
        _ => None,
    }
}

/// The working directory first: its path is as seen from our root.
pub(super) fn work_in(shell: &mut Shell, cwd: &str, deleted: bool, root: &str) {
    let change = |shell: &mut Shell, cwd: &str| {
        let name = shell.program.string(cwd);
        let label = format!("change to {cwd}");
        shell.program.must(libc::SYS_chdir, &[name.into()], label);
    };
    if deleted {
        directory::make(shell, cwd, change);
    } else {
        change(shell, cwd);
    }
    let program = &mut shell.program;
    if root != "/" {
        let name = program.string(root);
        program.must(
            libc::SYS_chroot,
            &[name.into()],
            format!("make {root} the root"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_with_content_are_counted() {
        let content = Content::new(&PageSet::from_iter([0, 3, 4, 5, 9]));
        let count = |pages: Range<u64>| content.count(&(pages.start << 12..pages.end << 12));
        let counts = [0..1, 1..3, 2..4, 4..5, 4..10, 6..9, 9..10, 10..20, 0..20].map(count);
        assert_eq!(counts, [1, 0, 1, 1, 3, 0, 1, 0, 5]);
    }
}
