//! A process's memory map: which mappings there are, and making the same ones again.

use std::ops::Range;

use images::proto::mapping::Kind;
use images::proto::{AddressSpace, Attribute, Mapping, MmLayout, PageRun};
use remote::{Arg, Expect, Program};

use crate::areas::{Area, has};
use crate::files::Table;
use crate::freeze::failed;
use crate::ipc::segments;
use crate::procfs::{self, Stat};
use crate::{CheckpointError, Refusal, attributes, probes};

/// A captured address space and where its pages are to be read from.
pub(crate) struct Captured {
    pub(crate) space: AddressSpace,
    pub(crate) areas: Vec<(Range<u64>, memory::Kind)>,
    /// Whether it locks what it maps, as our own mapping tells where there is one.
    pub(crate) locked: Option<Attribute>,
}

/// Reads the map of a stopped process; `ours` is left out. `space` will name its pages. Of a `watched` process the
/// write tracking and of missing pages (userfaultfds of ours) is not told.
pub(crate) fn capture(
    pid: u32,
    areas: Vec<Area>,
    (space, watched): (u64, bool),
    ours: &Range<u64>,
    table: &mut Table,
    refusals: &mut Vec<Refusal>,
) -> Result<Captured, CheckpointError> {
    let mut captured = Captured {
        space: AddressSpace {
            space,
            ..Default::default()
        },
        areas: Vec::new(),
        locked: None,
    };
    let mut pagemap = None;
    let own = areas
        .iter()
        .find(|area| (area.start..area.end).contains(&ours.start));
    captured.locked = own.and_then(attributes::locked);
    for area in areas.into_iter().flat_map(|area| without(area, ours)) {
        if area.path == "[vsyscall]" || probes::is_area(&area) {
            continue;
        }
        let mut area = area;
        if watched {
            area.flags = without_ours(&area.flags);
        }
        let mut mapping = match classify(pid, &area, table)? {
            Ok(mapping) => mapping,
            Err(refusal) => {
                refusals.push(refusal);
                continue;
            }
        };
        mapping.vm_flags = std::mem::take(&mut area.flags);
        let kind = match mapping.kind() {
            _ if mapping.huge_page_size != 0 && mapping.kind() == Kind::Anonymous => {
                Some(memory::Kind::Huge)
            }
            // Its owner makes it anew when it finds it empty: states of getrandom(3), which no two processes may share.
            Kind::Anonymous if has(&mapping.vm_flags, "dp") => None,
            Kind::Anonymous => Some(memory::Kind::Anonymous),
            Kind::FilePrivate => Some(memory::Kind::PrivateFile),
            _ => None,
        };
        if let Some(kind) = kind {
            let parts = probes::without(pid, &area, &mapping, &mut pagemap)?;
            captured
                .areas
                .extend(parts.into_iter().map(|part| (part, kind)));
        }
        captured.space.mappings.push(mapping);
    }
    Ok(captured)
}

/// Finds the guard pages of a stopped process in its captured mappings. In private ones they are only `among` these ranges (by address,
/// without overlap).
pub(crate) fn guards(
    pid: u32,
    mappings: &mut [Mapping],
    among: &[Range<u64>],
) -> Result<(), CheckpointError> {
    let pagemap = memory::Pagemap::open(pid)?;
    // Since Linux 6.15 those of files too. The flag that says so ("gu") is newer, and set without the mappings being locked
    // (mm/madvise.c, madvise_guard_install), so that it may not be known yet.
    let may_have = |mapping: &Mapping| {
        let own = matches!(mapping.kind(), Kind::Vdso | Kind::Vvar);
        !own && mapping.huge_page_size == 0
    };
    // Neighbours are looked at together: there may be thousands.
    let mut asked: Vec<Range<u64>> = Vec::new();
    for mapping in mappings.iter().filter(|mapping| may_have(mapping)) {
        let whole = mapping.start..mapping.end;
        let shared = matches!(mapping.kind(), Kind::FileShared | Kind::AnonymousShared);
        let parts: Vec<_> = if shared {
            vec![whole]
        } else {
            within(among, &whole).collect()
        };
        for part in parts {
            match asked.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => asked.push(part),
            }
        }
    }
    let mut guards = Vec::new();
    for range in asked {
        pagemap.guards(range, &mut guards)?;
    }
    for mapping in mappings.iter_mut().filter(|mapping| may_have(mapping)) {
        let run = |run: Range<u64>| PageRun {
            start: run.start,
            end: run.end,
        };
        let whole = mapping.start..mapping.end;
        mapping.guards = within(&guards, &whole).map(run).collect();
    }
    Ok(())
}

/// What of these ranges (by address, without overlap) lies in another.
fn within<'a>(
    ranges: &'a [Range<u64>],
    other: &'a Range<u64>,
) -> impl Iterator<Item = Range<u64>> + 'a {
    let first = ranges.partition_point(|range| range.end <= other.start);
    let inside = ranges[first..].iter();
    inside
        .take_while(|range| range.start < other.end)
        .map(|range| range.start.max(other.start)..range.end.min(other.end))
}

/// Everywhere, for [`guards`].
pub(crate) const EVERYWHERE: &[Range<u64>] = &[0..u64::MAX / memory::PAGE_SIZE * memory::PAGE_SIZE];

/// The kernel may have merged our mapping with its neighbours: what is left of an area without it.
fn without(area: Area, ours: &Range<u64>) -> Vec<Area> {
    if ours.end <= area.start || area.end <= ours.start {
        return vec![area];
    }
    let below = Area {
        end: ours.start.max(area.start),
        ..area.clone()
    };
    let above = Area {
        start: ours.end.min(area.end),
        ..area
    };
    [below, above]
        .into_iter()
        .filter(|area| area.start < area.end)
        .collect()
}

/// Whether flags are those of memory that is no ordinary one (VM_IO, VM_PFNMAP), as that of the kernel's own vdso is too.
pub(crate) fn is_device(flags: &str) -> bool {
    has(flags, "io") || has(flags, "pf")
}

/// Whether flags are those of memory that a userfaultfd watches, other than for writes.
pub(crate) fn is_watched(flags: &str) -> bool {
    has(flags, "um") || has(flags, "ui")
}

/// VmFlags without those that mappings have while we track writes, or bring in their pages.
pub(crate) fn without_ours(flags: &str) -> String {
    flags.replace(" um", "").replace(" uw", "")
}

/// Why a mapping cannot be restored for what it is, whatever its file may be.
pub(crate) fn refused(pid: u32, area: &Area) -> Option<Refusal> {
    if is_watched(&area.flags) || area.has("uw") {
        let why = "the program watches it with a userfaultfd of its own";
        let advice = "let the program close its userfaultfd before the checkpoint";
        return Some(area.refusal(pid, why, advice));
    }
    let own = area.path == "[vdso]" || area.path.starts_with("[vvar");
    (is_device(&area.flags) && !own).then(|| {
        let advice = "checkpoint the program before it opens the device";
        area.refusal(pid, "it is memory of a device", advice)
    })
}

/// What kind of mapping it is; `Err` inside when it cannot be restored.
fn classify(
    pid: u32,
    area: &Area,
    table: &mut Table,
) -> Result<Result<Mapping, Refusal>, CheckpointError> {
    let mut mapping = Mapping {
        start: area.start,
        end: area.end,
        prot: area.prot(),
        offset: area.offset,
        ..Default::default()
    };
    if area.has("ht") {
        mapping.huge_page_size = area.page_size;
    }
    if let Some(refusal) = refused(pid, area) {
        return Ok(Err(refusal));
    }
    let path = area.path.as_str();
    if let Some((why, advice)) = not_memory(path) {
        return Ok(Err(area.refusal(pid, why, advice)));
    }
    if path == "[vdso]" {
        mapping.set_kind(Kind::Vdso);
    } else if path.starts_with("[vvar") {
        mapping.set_kind(Kind::Vvar);
    } else if path == "/[aio] (deleted)" {
        let why = "it is a context of io_submit(2), for which a device may be writing to memory";
        let advice = "checkpoint the program when it has called io_destroy, or have it do without";
        return Ok(Err(area.refusal(pid, why, advice)));
    } else if let Some(name) = path
        .strip_prefix("[anon:")
        .and_then(|p| p.strip_suffix(']'))
    {
        name.clone_into(&mut mapping.name);
    } else if path.is_empty()
        || path == "[heap]"
        || path == "[stack]"
        || path.starts_with("[stack:")
    {
        // Memory without a name of its own.
    } else if matches!(path, "/dev/zero" | "/anon_hugepage (deleted)") && !area.shared() {
        mapping.offset = 0;
    } else if path == "/dev/zero (deleted)"
        || path == "/anon_hugepage (deleted)"
        || path.starts_with("[anon_shmem:")
        || segments::is(area)
    {
        mapping.set_kind(Kind::AnonymousShared);
        mapping.file = table.shared_memory(pid, area)?;
    } else {
        let writable = area.shared() && (area.has("wr") || area.has("mw"));
        match table.mapped(pid, area, area.shared() && writable)? {
            Ok(file) => mapping.file = file,
            Err((why, advice)) => return Ok(Err(area.refusal(pid, &why, &advice))),
        }
        mapping.set_kind(if area.shared() {
            Kind::FileShared
        } else {
            Kind::FilePrivate
        });
    }
    Ok(Ok(mapping))
}

/// Mappings that are files to the kernel alone.
fn not_memory(path: &str) -> Option<(&'static str, &'static str)> {
    match path {
        "anon_inode:[io_uring]" => Some((
            "it is the ring of an io_uring, which is not supported",
            "start the program without (node, libuv: UV_USE_IO_URING=0; PostgreSQL: io_method=worker)",
        )),
        "/secretmem (deleted)" => Some((
            "it is secret memory (memfd_secret(2)), which nobody but the process can read",
            "let the program give it back before the checkpoint",
        )),
        _ => None,
    }
}

/// The PR_SET_MM_MAP fields, from /proc/PID/stat; `brk` is the process's own answer.
pub(crate) fn layout(
    pid: u32,
    stat: &Stat,
    brk: u64,
    exe: u32,
) -> Result<MmLayout, CheckpointError> {
    let field = |number| stat.field(number) as u64;
    let path = format!("/proc/{pid}/auxv");
    Ok(MmLayout {
        start_code: field(26),
        end_code: field(27),
        start_stack: field(28),
        start_data: field(45),
        end_data: field(46),
        start_brk: field(47),
        arg_start: field(48),
        arg_end: field(49),
        env_start: field(50),
        env_end: field(51),
        brk,
        auxv: remote::sys::read_file(&path).map_err(failed(format!("reading {path}")))?,
        exe,
    })
}

/// Notes the layout of an address space, and which mapping it makes the stack: prctl(2), `PR_SET_MM`, changes that without locking the
/// mappings (kernel/sys.c, prctl_set_mm_map), so what they were called when they were read does not tell.
pub(crate) fn lay_out(space: &mut AddressSpace, layout: MmLayout) {
    let at = layout.start_stack;
    for mapping in &mut space.mappings {
        mapping.stack =
            mapping.kind() == Kind::Anonymous && (mapping.start..=mapping.end).contains(&at);
    }
    space.layout = Some(layout);
}

/// Linux 6.11, in place of MAP_PRIVATE.
const MAP_DROPPABLE: i32 = 0x08;

/// Makes one mapping. `file`: the descriptor of its file or object. `filled`: pages will be written into it first.
pub(crate) fn map(program: &mut Program, mapping: &Mapping, file: Option<u32>, filled: bool) {
    let anonymous = matches!(mapping.kind(), Kind::Anonymous);
    let has = |flag| has(&mapping.vm_flags, flag);
    let mut flags = libc::MAP_FIXED_NOREPLACE;
    flags |= match mapping.kind() {
        Kind::FileShared | Kind::AnonymousShared => libc::MAP_SHARED,
        _ if has("dp") => MAP_DROPPABLE,
        _ => libc::MAP_PRIVATE,
    };
    for (wanted, flag) in [
        (anonymous, libc::MAP_ANONYMOUS),
        (has("gd"), libc::MAP_GROWSDOWN),
        (has("nr"), libc::MAP_NORESERVE),
        (
            mapping.huge_page_size != 0 && anonymous,
            libc::MAP_HUGETLB | huge_page_flag(mapping.huge_page_size),
        ),
    ] {
        flags |= if wanted { flag } else { 0 };
    }
    let prot = if filled {
        mapping.prot | (libc::PROT_READ | libc::PROT_WRITE) as u32
    } else {
        mapping.prot
    };
    let fd = file.map_or(Arg::Value(u64::MAX), Arg::from);
    let offset = if anonymous { 0 } else { mapping.offset };
    let length = mapping.end - mapping.start;
    let args = [
        mapping.start.into(),
        length.into(),
        prot.into(),
        flags.into(),
        fd,
        offset.into(),
    ];
    let label = format!("map {:x}-{:x}", mapping.start, mapping.end);
    program.call(libc::SYS_mmap, &args, Expect::Exactly(mapping.start), label);
    // What decides how pages come in has to be there before they do.
    for (flag, advice) in [("hg", libc::MADV_HUGEPAGE), ("nh", libc::MADV_NOHUGEPAGE)] {
        if has(flag) && mapping.huge_page_size == 0 {
            advise(program, mapping.start, length, advice);
        }
    }
}

/// log2 of the page size, where mmap(2) wants it.
fn huge_page_flag(size: u64) -> i32 {
    (size.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT
}

fn advise(program: &mut Program, start: u64, length: u64, advice: i32) {
    let args = [start.into(), length.into(), advice.into()];
    program.try_call(
        libc::SYS_madvise,
        &args,
        format!("madvise({advice}) {start:x}"),
    );
}

/// Linux 6.13.
const MADV_GUARD_INSTALL: i32 = 102;
const PR_SET_VMA: u64 = 0x5356_4d41;
const MLOCK_ONFAULT: u64 = 1;

/// Gives a mapping whose pages are in its last attributes.
pub(crate) fn finish(program: &mut Program, mapping: &Mapping, filled: bool) {
    let has = |flag| has(&mapping.vm_flags, flag);
    let (start, length) = (mapping.start, mapping.end - mapping.start);
    if filled && mapping.prot & 3 != 3 {
        let args = [start.into(), length.into(), mapping.prot.into()];
        program.must(
            libc::SYS_mprotect,
            &args,
            format!("protect {start:x}-{:x}", mapping.end),
        );
    }
    for guard in &mapping.guards {
        let args = [
            guard.start.into(),
            (guard.end - guard.start).into(),
            MADV_GUARD_INSTALL.into(),
        ];
        program.must(
            libc::SYS_madvise,
            &args,
            format!("guard {:x}-{:x}", guard.start, guard.end),
        );
    }
    for (flag, advice) in [
        ("dc", libc::MADV_DONTFORK),
        ("wf", libc::MADV_WIPEONFORK),
        ("dd", libc::MADV_DONTDUMP),
        ("mg", libc::MADV_MERGEABLE),
        ("sr", libc::MADV_SEQUENTIAL),
        ("rr", libc::MADV_RANDOM),
    ] {
        if has(flag) && mapping.huge_page_size == 0 {
            advise(program, start, length, advice);
        }
    }
    if !mapping.name.is_empty() {
        let name = program.string(&mapping.name);
        let args = [
            PR_SET_VMA.into(),
            0.into(),
            start.into(),
            length.into(),
            name.into(),
        ];
        program.try_call(libc::SYS_prctl, &args, format!("name {start:x}"));
    }
    if has("lo") && mapping.huge_page_size == 0 {
        let on_fault = if has("lf") { MLOCK_ONFAULT } else { 0 };
        let args = [start.into(), length.into(), on_fault.into()];
        program.must(
            libc::SYS_mlock2,
            &args,
            format!("lock {start:x}-{:x}", mapping.end),
        );
    }
    if has("sl") {
        program.try_call(
            462,
            &[start.into(), length.into(), 0.into()],
            format!("seal {start:x}"),
        );
    }
}

/// Tells the kernel where code, data, heap, arguments and environment are and which file is executed (prctl(2), PR_SET_MM_MAP).
pub(crate) fn set_layout(program: &mut Program, layout: &MmLayout, exe: u32) {
    const PR_SET_MM: u64 = 35;
    const PR_SET_MM_MAP: u64 = 14;
    let auxv = program.bytes(layout.auxv.clone());
    let l = layout;
    let mut map: Vec<u8> = [
        l.start_code,
        l.end_code,
        l.start_data,
        l.end_data,
        l.start_brk,
        l.brk,
        l.start_stack,
        l.arg_start,
        l.arg_end,
        l.env_start,
        l.env_end,
        0,
    ]
    .iter()
    .flat_map(|word| word.to_ne_bytes())
    .collect();
    map.extend((layout.auxv.len() as u32).to_ne_bytes());
    map.extend(exe.to_ne_bytes());
    let length = map.len();
    let map = program.bytes(map);
    program.point(map, 88, auxv);
    let args = [
        PR_SET_MM.into(),
        PR_SET_MM_MAP.into(),
        map.into(),
        length.into(),
        0.into(),
    ];
    program.must(
        libc::SYS_prctl,
        &args,
        "set the layout of the address space",
    );
}

/// The GNU build id in the notes of an ELF file (elf(5), NT_GNU_BUILD_ID); empty where there is none.
pub(crate) fn build_id(file: &std::fs::File) -> Vec<u8> {
    find_build_id(file).unwrap_or_default()
}

fn find_build_id(file: &std::fs::File) -> Option<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    // Where linkers put all that is asked for here.
    let mut head = vec![0; 4096];
    let length = file.read_at(&mut head, 0).ok()?;
    head.truncate(length);
    let read = |at: u64, length: usize| {
        let start = usize::try_from(at).ok()?;
        if let Some(bytes) = head.get(start..start.checked_add(length)?) {
            return Some(bytes.to_vec());
        }
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    };
    let word = |b: &[u8], at: usize| Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?));
    let half = |b: &[u8], at: usize| Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?));
    let header = read(0, 64)?;
    if &header[..5] != b"\x7fELF\x02" {
        return None;
    }
    let count = u16::from_le_bytes([header[56], header[57]]);
    for nth in 0..u64::from(count.min(64)) {
        let segment = read(word(&header, 32)?.checked_add(nth * 56)?, 56)?;
        if half(&segment, 0)? != 4 {
            continue;
        }
        let notes = read(word(&segment, 8)?, word(&segment, 32)?.min(4096) as usize)?;
        let mut at = 0;
        while at + 12 <= notes.len() {
            let (name, size, kind) = (
                half(&notes, at)? as usize,
                half(&notes, at + 4)? as usize,
                half(&notes, at + 8)?,
            );
            let data = at + 12 + name.next_multiple_of(4);
            if kind == 3 && notes.get(at + 12..at + 16) == Some(b"GNU\0") {
                return notes.get(data..data.checked_add(size)?).map(<[u8]>::to_vec);
            }
            at = data + size.next_multiple_of(4);
        }
    }
    None
}

pub(crate) fn exe_path(pid: u32) -> Result<String, CheckpointError> {
    let path = format!("/proc/{pid}/exe");
    procfs::link(&path).map_err(failed(format!("reading {path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_what_is_asked() {
        let inside = |other| within(&[0..2, 3..6, 8..9], &other).collect::<Vec<_>>();
        assert_eq!(inside(1..4), [1..2, 3..4]);
        assert_eq!(inside(2..3), []);
        assert_eq!(inside(4..20), [4..6, 8..9]);
    }

    #[test]
    fn our_own_mapping_is_no_part_of_the_job() {
        let area = |start, end| Area {
            start,
            end,
            ..Default::default()
        };
        assert_eq!(without(area(1, 9), &(3..5)), [area(1, 3), area(5, 9)]);
        assert_eq!(without(area(3, 9), &(3..5)), [area(5, 9)]);
        assert!(without(area(3, 5), &(3..5)).is_empty());
        assert_eq!(without(area(5, 9), &(3..5)), [area(5, 9)]);
    }
}
