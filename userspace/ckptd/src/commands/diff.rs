//! `ckptd diff`: what changed in a job's memory from one checkpoint to another.

use super::{named, show::model};
use crate::cli::Diff;
use crate::failure::Failure;
use crate::output::{Align, Style, Table, moment, plain, print, print_json, size, styled};
use images::{Checkpoint, Difference, Job, PAGE_SIZE, PageSet, proto};
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::ops::AddAssign;
use std::process::ExitCode;

/// Bytes of pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Bytes {
    /// In both checkpoints, with different contents.
    changed: u64,
    /// In the newer one only.
    new: u64,
    /// In the older one only.
    gone: u64,
}

/// All of it.
#[derive(Serialize)]
struct Changes {
    job: String,
    from: u64,
    to: u64,
    /// Nanoseconds since the epoch.
    from_taken_at: u64,
    to_taken_at: u64,
    /// Shared memory counted once.
    #[serde(flatten)]
    bytes: Bytes,
    /// Those of the newer checkpoint, then those that ended.
    processes: Vec<Process>,
}

/// A process.
#[derive(Serialize)]
struct Process {
    pid: u32,
    name: String,
    /// "same", "new" (or it executed another program), "ended".
    state: &'static str,
    #[serde(flatten)]
    bytes: Bytes,
    /// Only those with changes.
    mappings: Vec<Mapping>,
}

/// A mapping.
#[derive(Serialize)]
struct Mapping {
    start: u64,
    end: u64,
    /// As of `show`.
    kind: &'static str,
    /// "same"; "gone": where the older checkpoint had one, and the newer has nothing.
    state: &'static str,
    #[serde(flatten)]
    bytes: Bytes,
    what: String,
}

/// Compares, and prints what it finds.
pub(crate) fn execute(args: &Diff) -> Result<ExitCode, Failure> {
    let job = named(&args.store.path(), &args.job)?;
    let older = job.checkpoint(Some(args.from))?;
    let newer = job.checkpoint(args.to)?;
    let changes = compare(&job, &older, &newer)?;
    if args.output.json {
        print_json(&changes);
    } else {
        print(&text(&changes));
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(job: &Job, older: &Checkpoint, newer: &Checkpoint) -> Result<Changes, Failure> {
    let mut differences = HashMap::new();
    let mut bytes = Bytes::default();
    for space in spaces(older).union(&spaces(newer)) {
        let difference = newer.diff(older, *space)?;
        bytes += sum(&difference, 0, u64::MAX);
        differences.insert(*space, difference);
    }
    let (was, is) = (Side::new(job, older)?, Side::new(job, newer)?);
    let mut processes = is.processes(&differences, Some(&was));
    let ended = was.processes(&differences, None).into_iter();
    let ended = ended.zip(&was.snapshot.processes);
    processes.extend(ended.filter_map(|(process, record)| {
        let space = record.memory.as_ref()?.space;
        is.memory(space).is_none().then_some(process)
    }));
    Ok(Changes {
        job: job.name().to_owned(),
        from: older.sequence(),
        to: newer.sequence(),
        from_taken_at: older.manifest().created_at,
        to_taken_at: newer.manifest().created_at,
        bytes,
        processes,
    })
}

fn spaces(checkpoint: &Checkpoint) -> BTreeSet<u64> {
    let spaces = checkpoint.manifest().spaces.iter();
    spaces.map(|has| has.space).collect()
}

/// One of the two checkpoints.
struct Side<'a> {
    snapshot: &'a proto::Snapshot,
    /// The same processes and mappings in the same order, in words.
    model: model::Checkpoint,
}

impl<'a> Side<'a> {
    fn new(job: &Job, checkpoint: &'a Checkpoint) -> Result<Self, Failure> {
        Ok(Self {
            snapshot: checkpoint.snapshot(),
            model: model::Checkpoint::new(job, checkpoint)?,
        })
    }

    /// The memory of the process that has this space.
    fn memory(&self, space: u64) -> Option<&proto::AddressSpace> {
        let memories = self.snapshot.processes.iter();
        memories
            .filter_map(|process| process.memory.as_ref())
            .find(|memory| memory.space == space)
    }

    /// What changed in each process; `None` for `before` means that they have ended.
    fn processes(
        &self,
        differences: &HashMap<u64, Difference>,
        before: Option<&Side>,
    ) -> Vec<Process> {
        let processes = self.model.processes.iter().zip(&self.snapshot.processes);
        let process = |(shown, record): (&model::Process, &proto::Process)| {
            let memory = record.memory.clone().unwrap_or_default();
            let old = before.and_then(|before| before.memory(memory.space));
            let rows = memory.mappings.iter().zip(&shown.mappings);
            let mut mappings: Vec<Mapping> = rows
                .map(|(mapping, shown)| {
                    let (space, start, end) = self.pages(mapping, memory.space);
                    Mapping {
                        start: mapping.start,
                        end: mapping.end,
                        kind: shown.kind,
                        state: "same",
                        bytes: differences
                            .get(&space)
                            .map(|difference| sum(difference, start, end))
                            .unwrap_or_default(),
                        what: shown.what.clone(),
                    }
                })
                .collect();
            // What is gone where no mapping is any more.
            if let (Some(old), Some(difference)) = (old, differences.get(&memory.space)) {
                let mut gone = difference.gone.clone();
                for mapping in &memory.mappings {
                    gone.remove_range(mapping.start / PAGE..mapping.end.div_ceil(PAGE));
                }
                mappings.extend(old.mappings.iter().filter_map(|mapping| {
                    let bytes = Bytes {
                        gone: between(&gone, mapping.start, mapping.end),
                        ..Bytes::default()
                    };
                    (bytes.gone > 0).then(|| Mapping {
                        start: mapping.start,
                        end: mapping.end,
                        kind: "unmapped",
                        state: "gone",
                        bytes,
                        what: mapping.name.clone(),
                    })
                }));
            }
            mappings.retain(|mapping| mapping.bytes != Bytes::default());
            let mut bytes = Bytes::default();
            mappings.iter().for_each(|mapping| bytes += mapping.bytes);
            Process {
                pid: shown.pid,
                name: shown.name.clone(),
                state: match (before, old) {
                    (None, _) => "ended",
                    (Some(_), None) if record.memory.is_some() => "new",
                    _ => "same",
                },
                bytes,
                mappings,
            }
        };
        processes.map(process).collect()
    }

    /// The space that holds a mapping's pages, and where in it they lie, in bytes.
    fn pages(&self, mapping: &proto::Mapping, space: u64) -> (u64, u64, u64) {
        if mapping.kind() != proto::mapping::Kind::AnonymousShared {
            return (space, mapping.start, mapping.end);
        }
        let mut objects = self.snapshot.shared.iter();
        let object = objects.find(|object| object.id == mapping.file);
        let length = mapping.end.saturating_sub(mapping.start);
        let end = mapping.offset.saturating_add(length);
        (object.map_or(0, |object| object.space), mapping.offset, end)
    }
}

const PAGE: u64 = PAGE_SIZE as u64;

/// Bytes of the pages from byte `start` up to `end`.
fn between(pages: &PageSet, start: u64, end: u64) -> u64 {
    let below = |end: u64| {
        (end / PAGE)
            .checked_sub(1)
            .map_or(0, |last| pages.rank(last))
    };
    below(end).saturating_sub(below(start)) * PAGE
}

fn sum(difference: &Difference, start: u64, end: u64) -> Bytes {
    Bytes {
        changed: between(&difference.changed, start, end),
        new: between(&difference.new, start, end),
        gone: between(&difference.gone, start, end),
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        self.changed += other.changed;
        self.new += other.new;
        self.gone += other.gone;
    }
}

fn text(changes: &Changes) -> String {
    let title = format!(
        "{}, checkpoint {} to {}",
        plain(&changes.job),
        changes.from,
        changes.to
    );
    let mut text = format!(
        "{}\n  from {} to {}\n  {}\n",
        styled(Style::Bold, &title),
        moment(changes.from_taken_at),
        moment(changes.to_taken_at),
        in_words(changes.bytes)
    );
    for process in &changes.processes {
        let title = format!("process {} {}", process.pid, plain(&process.name));
        let state = match process.state {
            "same" => "",
            "new" => " (new)",
            _ => " (ended)",
        };
        text += &format!(
            "\n{}{state}: {}\n",
            styled(Style::Bold, &title),
            in_words(process.bytes)
        );
        if process.mappings.is_empty() {
            continue;
        }
        let mut table = Table::new(&[
            ("ADDRESSES", Align::Left),
            ("CHANGED", Align::Right),
            ("NEW", Align::Right),
            ("GONE", Align::Right),
            ("KIND", Align::Left),
            ("WHAT", Align::Left),
        ]);
        for mapping in &process.mappings {
            table.row(vec![
                format!("{:x}-{:x}", mapping.start, mapping.end),
                size(mapping.bytes.changed),
                size(mapping.bytes.new),
                size(mapping.bytes.gone),
                mapping.kind.to_owned(),
                plain(&mapping.what),
            ]);
        }
        text += &table.render("  ");
    }
    text
}

fn in_words(bytes: Bytes) -> String {
    if bytes == Bytes::default() {
        return "no change".to_owned();
    }
    format!(
        "{} changed, {} new, {} gone",
        size(bytes.changed),
        size(bytes.new),
        size(bytes.gone)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_in_their_mapping() {
        let difference = Difference {
            changed: PageSet::from_iter([0, 1, 5]),
            new: PageSet::from_iter([2]),
            gone: PageSet::new(),
        };
        let bytes = sum(&difference, PAGE, 5 * PAGE);
        assert_eq!(
            bytes,
            Bytes {
                changed: PAGE,
                new: PAGE,
                gone: 0
            }
        );
        assert_eq!(sum(&difference, 0, u64::MAX).changed, 3 * PAGE);
        assert_eq!(in_words(bytes), "4.0 KiB changed, 4.0 KiB new, 0 B gone");
    }
}
