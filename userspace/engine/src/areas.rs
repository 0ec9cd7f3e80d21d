//! What is mapped where in a process: read in bulk by a BPF iterator, or from /proc.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use tracker::{FileIdentity, Mapping, Place, Tracker};

use crate::freeze::failed;
use crate::{CheckpointError, Refusal, procfs};

/// One entry of /proc/PID/smaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) permissions: String,
    pub(crate) offset: u64,
    pub(crate) device: (u32, u32),
    pub(crate) inode: u64,
    pub(crate) path: String,
    pub(crate) flags: String,
    pub(crate) page_size: u64,
}

/// Parses /proc/PID/smaps (fs/proc/task_mmu.c, show_smap).
pub(crate) fn parse(smaps: &str) -> Vec<Area> {
    let mut areas: Vec<Area> = Vec::new();
    for line in smaps.lines() {
        let first = line.as_bytes().first().copied().unwrap_or(b' ');
        if first.is_ascii_digit() || first.is_ascii_lowercase() {
            areas.extend(parse_header(line));
        } else if let Some(area) = areas.last_mut() {
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                flags.trim().clone_into(&mut area.flags);
            } else if let Some(size) = line.strip_prefix("KernelPageSize:") {
                area.page_size = size
                    .split_whitespace()
                    .next()
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(4)
                    * 1024;
            }
        }
    }
    areas
}

fn parse_header(line: &str) -> Option<Area> {
    let mut rest = line;
    let mut word = || {
        let trimmed = rest.trim_start_matches(' ');
        let (word, tail) = trimmed.split_once(' ').unwrap_or((trimmed, ""));
        rest = tail;
        word
    };
    let (start, end) = word().split_once('-')?;
    let permissions = word().to_owned();
    let offset = u64::from_str_radix(word(), 16).ok()?;
    let (major, minor) = word().split_once(':')?;
    let inode = word().parse().ok()?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(Area {
        start: hex(start)?,
        end: hex(end)?,
        permissions,
        offset,
        device: (hex(major)? as u32, hex(minor)? as u32),
        inode,
        // seq_path escapes newlines only.
        path: rest.trim_start_matches(' ').replace("\\012", "\n"),
        ..Default::default()
    })
}

impl Area {
    pub(crate) fn has(&self, flag: &str) -> bool {
        has(&self.flags, flag)
    }

    pub(crate) fn shared(&self) -> bool {
        self.permissions.ends_with('s')
    }

    /// Of `MAP_SHARED | MAP_ANONYMOUS`, in pages of ordinary size.
    pub(crate) fn is_shared_anonymous(&self) -> bool {
        let named = self.path.starts_with("[anon_shmem:");
        self.shared() && (named || self.path == "/dev/zero (deleted)")
    }

    pub(crate) fn prot(&self) -> u32 {
        let bytes = self.permissions.as_bytes();
        let bit = |nth: usize, letter: u8, prot: i32| {
            if bytes.get(nth) == Some(&letter) {
                prot as u32
            } else {
                0
            }
        };
        bit(0, b'r', libc::PROT_READ)
            | bit(1, b'w', libc::PROT_WRITE)
            | bit(2, b'x', libc::PROT_EXEC)
    }

    pub(crate) fn refusal(&self, pid: u32, why: &str, advice: &str) -> Refusal {
        Refusal {
            pid,
            what: format!("mapping {:x}-{:x} ({})", self.start, self.end, self.path),
            why: why.to_owned(),
            advice: advice.to_owned(),
        }
    }
}

/// Whether a flag is among VmFlags.
pub(crate) fn has(flags: &str, flag: &str) -> bool {
    // Two letters each, with a space between.
    flags
        .as_bytes()
        .chunks(3)
        .any(|shown| shown.get(..2) == Some(flag.as_bytes()))
}

/// The mappings of a process that may run meanwhile, without their flags.
pub(crate) fn running(pid: u32) -> Result<Vec<Area>, CheckpointError> {
    let path = format!("/proc/{pid}/maps");
    let text = remote::sys::read_text(&path).map_err(failed(format!("reading {path}")))?;
    Ok(parse(&text))
}

/// The private ones of them. There is no guarantee: what it takes for ordinary memory of a file may be a hugetlb mapping.
pub(crate) fn private(areas: &[Area]) -> Vec<(Range<u64>, memory::Kind)> {
    let private = areas.iter().filter(|area| !area.shared());
    private
        .filter_map(|area| {
            let range = area.start..area.end;
            match area.path.as_str() {
                "/dev/zero" => Some((range, memory::Kind::Anonymous)),
                "/anon_hugepage (deleted)" => Some((range, memory::Kind::Huge)),
                path if path.starts_with("[v") || path.starts_with("/dev/") => None,
                path if path.is_empty() || path.starts_with('[') => {
                    Some((range, memory::Kind::Anonymous))
                }
                _ => Some((range, memory::Kind::PrivateFile)),
            }
        })
        .collect()
}

/// Where open files are that processes have mapped.
pub(crate) type Paths = HashMap<FileIdentity, String>;

/// The mappings of a stopped process.
///
/// `paths` are those of files that mappings of any process of the job were found to be of.
pub(crate) fn of(
    pid: u32,
    tracker: Option<&Tracker>,
    paths: &mut Paths,
) -> Result<Vec<Area>, CheckpointError> {
    let mappings = tracker.map(|tracker| (tracker, tracker.mappings(pid)));
    let told = match &mappings {
        Some((tracker, Ok(mappings))) => from_iterator(pid, tracker, mappings, paths)?,
        Some((_, Err(error))) => {
            tracing::warn!("{error}; reading smaps instead");
            None
        }
        None => None,
    };
    if let Some(areas) = told {
        return Ok(areas);
    }
    let path = format!("/proc/{pid}/smaps");
    let smaps = remote::sys::read_text(&path).map_err(failed(format!("reading {path}")))?;
    let areas = parse(&smaps);
    if let Some((tracker, Ok(mappings))) = mappings {
        teach(tracker, &mappings, &areas);
    }
    Ok(areas)
}

/// What smaps says is what the flags in it are called.
fn teach(tracker: &Tracker, mappings: &[Mapping], areas: &[Area]) {
    let by_start: HashMap<u64, &Area> = areas.iter().map(|area| (area.start, area)).collect();
    let sample = |mapping: &Mapping| {
        let area = by_start.get(&mapping.start)?;
        (area.end == mapping.end).then_some((mapping.flags, area.flags.as_str()))
    };
    tracker.learn(mappings.iter().filter_map(sample));
}

/// `None`: it takes smaps to tell.
fn from_iterator(
    pid: u32,
    tracker: &Tracker,
    mappings: &[Mapping],
    paths: &mut Paths,
) -> Result<Option<Vec<Area>>, CheckpointError> {
    let mut names = HashMap::new();
    let mut areas = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        let flags: &Option<String> = names
            .entry(mapping.flags)
            .or_insert_with_key(|&flags| tracker.flag_names(flags));
        let Some(flags) = flags else {
            return Ok(None);
        };
        let mut area = Area {
            start: mapping.start,
            end: mapping.end,
            permissions: permissions(flags),
            flags: flags.clone(),
            page_size: memory::PAGE_SIZE,
            ..Default::default()
        };
        match &mapping.place {
            Place::Anonymous(None) => {}
            Place::Anonymous(Some(name)) => area.path = format!("[anon:{name}]"),
            Place::Heap => "[heap]".clone_into(&mut area.path),
            Place::Stack => "[stack]".clone_into(&mut area.path),
            Place::Special(name) => name.clone_into(&mut area.path),
            Place::File {
                identity,
                offset,
                device,
                inode,
                name,
            } => {
                (area.offset, area.device, area.inode) = (*offset, *device, *inode);
                if area.has("ht") {
                    area.page_size = u64::from(mapping.block_size);
                }
                area.path = match (name, paths.get(identity)) {
                    (Some(name), _) => format!("[anon_shmem:{name}]"),
                    (None, Some(path)) => String::clone(path),
                    (None, None) => {
                        let Some(path) = path(pid, &area)? else {
                            return Ok(None);
                        };
                        paths.insert(*identity, path.clone());
                        path
                    }
                };
            }
        }
        areas.push(area);
    }
    Ok(Some(areas))
}

/// Where the file of a mapping is. `None`: the kernel maps a file that stands behind the one the process has opened, as overlayfs does, and
/// /proc would name that one's inode (fs/file_table.c, `backing_file_user_path`).
fn path(pid: u32, area: &Area) -> Result<Option<String>, CheckpointError> {
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", area.start, area.end);
    let path = procfs::link(&link).map_err(failed(format!("reading {link}")))?;
    Ok(leads(&path, area.inode).then_some(path))
}

/// Whether a mapped file is at its path, or it is known that it is not.
fn leads(path: &str, inode: u64) -> bool {
    path.ends_with(" (deleted)") || std::fs::metadata(path).is_ok_and(|meta| meta.ino() == inode)
}

/// Whether all mapped files are still where they were when the areas were read.
pub(crate) fn are_in_place(areas: &[Area]) -> bool {
    let mut seen = HashSet::new();
    let files = areas.iter().filter(|area| area.path.starts_with('/'));
    files
        .filter(|area| seen.insert((area.path.as_str(), area.inode)))
        .all(|area| leads(&area.path, area.inode))
}

/// As the first line of smaps shows them (fs/proc/task_mmu.c, `show_vma_header_prefix`).
fn permissions(flags: &str) -> String {
    [
        ("rd", 'r', '-'),
        ("wr", 'w', '-'),
        ("ex", 'x', '-'),
        ("ms", 's', 'p'),
    ]
    .map(|(flag, set, unset)| if has(flags, flag) { set } else { unset })
    .iter()
    .collect()
}

/// The mappings of our own process, for where the kernel has put its vdso.
pub(crate) fn own() -> Vec<Area> {
    let text = remote::sys::read_text("/proc/self/maps").unwrap_or_default();
    text.lines().filter_map(parse_header).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaps() {
        let text = "00400000-00401000 r-xp 00001000 fe:01 77                         /a dir/prog (x)\nSize: 4 kB\nKernelPageSize:        4 kB\nVmFlags: rd ex mr mw me \n7ffc0000-7ffd0000 rw-p 00000000 00:00 0                          [stack]\nVmFlags: rd wr gd ac \n";
        let areas = parse(text);
        assert_eq!(areas.len(), 2);
        assert_eq!(
            (areas[0].path.as_str(), areas[0].device, areas[0].inode),
            ("/a dir/prog (x)", (0xfe, 1), 77)
        );
        assert!(areas[0].has("ex") && !areas[0].has("wr"));
        assert_eq!(areas[0].prot(), 5);
        assert!(areas[1].has("gd") && areas[1].path == "[stack]");
    }
}
