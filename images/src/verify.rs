use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Flaw;
use crate::segment::{Segment, Segments};
use crate::{Checkpoint, Error, Job, PAGE_SIZE, Result, proto};

/// Threads that read and unpack; more than the disk needs does not help.
const THREADS: usize = 2;

/// One thing that is wrong with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The checkpoint.
    pub checkpoint: u64,
    /// The process whose memory is hit; of memory that processes share, the first of them.
    pub pid: Option<u32>,
    /// The addresses in that process that are hit; `None` when all of its memory may be.
    pub addresses: Option<Range<u64>>,
    /// The file that is damaged.
    pub file: PathBuf,
    /// Where in it, bytes from its start.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checkpoint {}", self.checkpoint)?;
        if let Some(pid) = self.pid {
            write!(f, ", process {pid}")?;
        }
        if let Some(Range { start, end }) = &self.addresses {
            write!(f, ", addresses {start:#x}-{end:#x}")?;
        }
        write!(
            f,
            ": {} at byte {}: {}",
            self.file.display(),
            self.offset,
            self.what
        )
    }
}

/// What is wrong with one segment, whichever checkpoints name it.
#[derive(Debug, Clone)]
struct Fault {
    /// The frame, if it is one.
    frame: Option<usize>,
    file: PathBuf,
    offset: u64,
    what: String,
}

impl Job {
    /// Reads every byte of a checkpoint, or of all of them, and says what is not as it was written.
    ///
    /// # Errors
    ///
    /// [`Error::NoCheckpoints`], [`Error::NoCheckpoint`], and [`Error::Io`] where files cannot be read at all.
    pub fn verify(&self, at: Option<u64>) -> Result<Vec<Damage>> {
        let sequences = match at {
            Some(_) => vec![self.resolve(at)?],
            None => {
                self.resolve(None)?;
                self.sequences()?
            }
        };
        // Checkpoints share segments; each is read once.
        let (mut open, mut known) = (Segments::default(), HashMap::new());
        let mut damage = Vec::new();
        for sequence in sequences {
            self.verify_one(sequence, &mut open, &mut known, &mut damage)?;
        }
        Ok(damage)
    }

    fn verify_one(
        &self,
        sequence: u64,
        open: &mut Segments,
        known: &mut HashMap<Vec<u8>, Vec<Fault>>,
        damage: &mut Vec<Damage>,
    ) -> Result<()> {
        let before = damage.len();
        let mut report = |pid, addresses, fault: &Fault| {
            let (file, offset, what) = (fault.file.clone(), fault.offset, fault.what.clone());
            damage.push(Damage {
                checkpoint: sequence,
                pid,
                addresses,
                file,
                offset,
                what,
            });
        };
        let manifest = match Checkpoint::open_manifest(self, sequence) {
            Ok((_, manifest, _)) => manifest,
            Err(error) => {
                report(None, None, &fault(error)?);
                return Ok(());
            }
        };
        let owners = Owners::new(&manifest);
        // Segments that cannot even be opened first: the memory they hold is lost as a whole.
        let mut lost = false;
        for (index, reference) in manifest.segments.iter().enumerate() {
            let Err(error) = open.get(self, reference) else {
                continue;
            };
            lost = true;
            let fault = fault(error)?;
            let mut named = false;
            for space in &manifest.spaces {
                if space
                    .layers
                    .iter()
                    .any(|layer| layer.segment as usize == index)
                {
                    named = true;
                    report(owners.pid(space.space), None, &fault);
                }
            }
            if !named {
                report(None, None, &fault);
            }
        }
        if lost {
            // Unless segments were rewritten meanwhile, and the manifest with them.
            let now = Checkpoint::open_manifest(self, sequence);
            if now.is_ok_and(|(_, now, _)| now != manifest) {
                damage.truncate(before);
                return self.verify_one(sequence, open, known, damage);
            }
            return Ok(());
        }
        let checkpoint = match Checkpoint::open_with(self, sequence, open) {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                report(None, None, &fault(error)?);
                return Ok(());
            }
        };
        for (segment, reference) in checkpoint.segments.iter().zip(&manifest.segments) {
            if !known.contains_key(&reference.id) {
                known.insert(reference.id.clone(), verify_segment(segment)?);
            }
        }
        // Which pages of this checkpoint each bad frame holds.
        let mut bad: HashMap<(usize, usize), (&Fault, bool)> = HashMap::new();
        for (index, reference) in manifest.segments.iter().enumerate() {
            for fault in &known[&reference.id] {
                match fault.frame {
                    Some(frame) => drop(bad.insert((index, frame), (fault, false))),
                    None => report(None, None, fault),
                }
            }
        }
        if bad.is_empty() {
            return Ok(());
        }
        for space in checkpoint.spaces.iter() {
            for frame in checkpoint.iter(space.space) {
                let Some((fault, reported)) = bad.get_mut(&(frame.segment, frame.index)) else {
                    continue;
                };
                *reported = true;
                if let (Some(first), Some(last)) = (frame.pages.first(), frame.pages.last()) {
                    let bytes = first * PAGE_SIZE as u64..(last + 1) * PAGE_SIZE as u64;
                    let (pid, addresses) = owners.locate(space.space, bytes);
                    report(pid, addresses, fault);
                }
            }
        }
        // Frames of which this checkpoint uses no page are damage to the file all the same.
        for (fault, _) in bad.into_values().filter(|(_, reported)| !reported) {
            report(None, None, fault);
        }
        Ok(())
    }
}

/// Damage is a finding; that a file cannot be read is an error.
fn fault(error: Error) -> Result<Fault> {
    match error {
        Error::Damaged { file, offset, what } => Ok(Fault {
            frame: None,
            file,
            offset,
            what,
        }),
        Error::Unsupported { file, what } => Ok(Fault {
            frame: None,
            file,
            offset: 0,
            what: format!("it needs {what}, which is not known here"),
        }),
        error => Err(error),
    }
}

/// Reads every frame and every gap.
fn verify_segment(segment: &Segment) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    let gaps = segment.layout.gaps(segment.end).or_else(|flaw: Flaw| {
        faults.push(fault(Error::damaged(&segment.path, flaw))?);
        Ok::<_, Error>(Vec::new())
    })?;
    for gap in gaps {
        if let Err(error) = segment.check_gap(gap) {
            faults.push(fault(error)?);
        }
    }
    let (next, frames) = (AtomicUsize::new(0), segment.layout.frames.offset.len());
    let found = Mutex::new(Ok(faults));
    std::thread::scope(|scope| {
        // A thread costs as much as a few frames.
        for _ in 0..THREADS.min(frames.div_ceil(16)) {
            scope.spawn(|| {
                let mut pages = Vec::new();
                loop {
                    let frame = next.fetch_add(1, Ordering::Relaxed);
                    if frame >= frames {
                        return;
                    }
                    let Err(error) = segment.read(frame, &mut pages) else {
                        continue;
                    };
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    match (fault(error), &mut *found) {
                        (Ok(fault), Ok(faults)) => faults.push(Fault {
                            frame: Some(frame),
                            ..fault
                        }),
                        (Err(error), found) => {
                            *found = Err(error);
                            return;
                        }
                        (Ok(_), Err(_)) => return,
                    }
                }
            });
        }
    });
    let mut faults = found.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    faults.sort_by_key(|fault| fault.offset);
    Ok(faults)
}

/// Which process a space belongs to, and where it has it.
struct Owners {
    /// Space, pid, start of the mapping and offset in the object; a process's own memory lies at 0.
    mappings: Vec<Mapped>,
}

struct Mapped {
    space: u64,
    pid: u32,
    start: u64,
    /// What of the space is mapped there.
    bytes: Range<u64>,
}

impl Owners {
    fn new(manifest: &proto::Manifest) -> Self {
        let snapshot = manifest.snapshot.clone().unwrap_or_default();
        let mut mappings = Vec::new();
        for process in &snapshot.processes {
            let Some(memory) = &process.memory else {
                continue;
            };
            let pid = process.pid;
            mappings.push(Mapped {
                space: memory.space,
                pid,
                start: 0,
                bytes: 0..u64::MAX,
            });
            for mapping in &memory.mappings {
                if mapping.kind() != proto::mapping::Kind::AnonymousShared {
                    continue;
                }
                let Some(object) = snapshot
                    .shared
                    .iter()
                    .find(|object| object.id == mapping.file)
                else {
                    continue;
                };
                let length = mapping.end.saturating_sub(mapping.start);
                let bytes = mapping.offset..mapping.offset.saturating_add(length);
                mappings.push(Mapped {
                    space: object.space,
                    pid,
                    start: mapping.start,
                    bytes,
                });
            }
        }
        Self { mappings }
    }

    fn pid(&self, space: u64) -> Option<u32> {
        self.mappings
            .iter()
            .find(|mapped| mapped.space == space)
            .map(|mapped| mapped.pid)
    }

    /// The first process that has any of these bytes of a space, and where.
    fn locate(&self, space: u64, bytes: Range<u64>) -> (Option<u32>, Option<Range<u64>>) {
        for mapped in self.mappings.iter().filter(|mapped| mapped.space == space) {
            let (start, end) = (
                bytes.start.max(mapped.bytes.start),
                bytes.end.min(mapped.bytes.end),
            );
            if start < end {
                let address = |byte: u64| mapped.start.saturating_add(byte - mapped.bytes.start);
                return (Some(mapped.pid), Some(address(start)..address(end)));
            }
        }
        (None, None)
    }
}
