//! A checkpoint as plain data, for people and scripts alike.

use super::describe;
use crate::failure::Failure;
use crate::supervisor::Watched;
use images::proto::{self, mapping, process};
use images::{PAGE_SIZE, PageSet};
use serde::Serialize;
use std::collections::HashMap;

/// A checkpoint.
#[derive(Debug, Serialize)]
pub(crate) struct Checkpoint {
    pub job: String,
    pub sequence: u64,
    /// The ckptd that took it.
    pub version: String,
    /// Nanoseconds since the epoch.
    pub taken_at: u64,
    pub host: String,
    pub kernel: String,
    pub arch: String,
    pub cpus: u32,
    pub command: Vec<String>,
    /// The process whose exit status is the job's.
    pub root: u32,
    /// Bytes on disk that it needs.
    pub bytes: u64,
    /// Those of them that no other checkpoint needs.
    pub own_bytes: u64,
    /// Bytes of segments that were written for it.
    pub written_bytes: u64,
    /// The checkpoint whose pages it goes on using; 0: none.
    pub base: u64,
    /// Bytes of memory saved, shared memory counted once.
    pub saved: u64,
    pub compression: String,
    pub stopped_seconds: f64,
    pub total_seconds: f64,
    pub phases: Vec<Phase>,
    /// What is known of the job now, while it runs.
    pub watched: Option<Watched>,
    /// Parents before their children.
    pub processes: Vec<Process>,
}

/// A phase of taking it.
#[derive(Debug, Serialize)]
pub(crate) struct Phase {
    pub name: String,
    pub seconds: f64,
}

/// A process.
#[derive(Debug, Serialize)]
pub(crate) struct Process {
    pub pid: u32,
    /// 0: outside of the job.
    pub ppid: u32,
    /// 0: made outside of the job.
    pub pgid: u32,
    /// 0: made outside of the job.
    pub sid: u32,
    pub state: &'static str,
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub cwd: String,
    pub exe: String,
    pub threads: Vec<Thread>,
    /// Bytes of address space.
    pub mapped: u64,
    /// Bytes of memory in the checkpoint.
    pub saved: u64,
    pub mappings: Vec<Mapping>,
    pub descriptors: Vec<Descriptor>,
}

/// A thread.
#[derive(Debug, Serialize)]
pub(crate) struct Thread {
    pub tid: u32,
    pub name: String,
}

/// A mapping.
#[derive(Debug, Serialize)]
pub(crate) struct Mapping {
    pub start: u64,
    pub end: u64,
    pub protection: String,
    /// "private", "shared", "file", "shared file", "heap", "stack", "kernel".
    pub kind: &'static str,
    /// Bytes of it in the checkpoint.
    pub saved: u64,
    /// The file, or the mapping's name.
    pub what: String,
}

/// A descriptor.
#[derive(Debug, Serialize)]
pub(crate) struct Descriptor {
    pub fd: u32,
    pub kind: &'static str,
    pub access: String,
    pub close_on_exec: bool,
    pub what: String,
    /// Others that share its offset and flags, as `pid:fd`.
    pub shared_with: Vec<String>,
}

/// Which pages of a space hold content, for every space.
struct Pages(HashMap<u64, PageSet>);

impl Pages {
    fn of(checkpoint: &images::Checkpoint) -> Self {
        let spaces = checkpoint.manifest().spaces.iter();
        let content = |space| checkpoint.pages(space) - checkpoint.zero_pages(space);
        Self(spaces.map(|has| (has.space, content(has.space))).collect())
    }

    /// Bytes from address `start` up to `end`.
    fn between(&self, space: u64, start: u64, end: u64) -> u64 {
        let page = PAGE_SIZE as u64;
        let up_to = |set: &PageSet, address: u64| {
            (address / page)
                .checked_sub(1)
                .map_or(0, |last| set.rank(last))
        };
        self.0.get(&space).map_or(0, |set| {
            up_to(set, end).saturating_sub(up_to(set, start)) * page
        })
    }

    fn all(&self) -> u64 {
        self.0.values().map(PageSet::len).sum::<u64>() * PAGE_SIZE as u64
    }
}

impl Checkpoint {
    /// Reads it out of the image.
    pub(crate) fn new(job: &images::Job, checkpoint: &images::Checkpoint) -> Result<Self, Failure> {
        let (manifest, snapshot) = (checkpoint.manifest(), checkpoint.snapshot());
        let host = snapshot.host.clone().unwrap_or_default();
        let statistics = manifest.statistics.clone().unwrap_or_default();
        let usage = job.usage()?;
        let usage = usage
            .iter()
            .find(|usage| usage.sequence == checkpoint.sequence());
        let pages = Pages::of(checkpoint);
        let context = Context::new(snapshot, &pages);
        Ok(Self {
            job: manifest.job.clone(),
            sequence: manifest.sequence,
            version: manifest.version.clone(),
            taken_at: manifest.created_at,
            host: host.hostname,
            kernel: host.kernel,
            arch: host.arch,
            cpus: host.cpus,
            command: snapshot.command.clone(),
            root: snapshot.root,
            bytes: checkpoint.bytes(),
            // It is not listed when it was removed a moment ago.
            own_bytes: usage.map_or(checkpoint.bytes(), |usage| usage.own),
            written_bytes: statistics.bytes,
            base: statistics.base,
            saved: pages.all(),
            watched: None,
            compression: statistics.compression,
            stopped_seconds: statistics.stopped_ns as f64 / 1e9,
            total_seconds: statistics.total_ns as f64 / 1e9,
            phases: statistics
                .phases
                .into_iter()
                .map(|phase| Phase {
                    name: phase.name,
                    seconds: phase.nanoseconds as f64 / 1e9,
                })
                .collect(),
            processes: snapshot
                .processes
                .iter()
                .map(|process| context.process(process))
                .collect(),
        })
    }
}

/// What records refer to by number.
struct Context<'a> {
    files: HashMap<u32, &'a proto::OpenFile>,
    shared: HashMap<u32, &'a proto::SharedMemory>,
    /// Who holds each open file.
    holders: HashMap<u32, Vec<String>>,
    pages: &'a Pages,
}

impl<'a> Context<'a> {
    fn new(snapshot: &'a proto::Snapshot, pages: &'a Pages) -> Self {
        let mut holders: HashMap<u32, Vec<String>> = HashMap::new();
        for process in &snapshot.processes {
            for descriptor in &process.descriptors {
                holders
                    .entry(descriptor.file)
                    .or_default()
                    .push(format!("{}:{}", process.pid, descriptor.fd));
            }
        }
        let files = snapshot.files.iter().map(|file| (file.id, file)).collect();
        let shared = snapshot
            .shared
            .iter()
            .map(|memory| (memory.id, memory))
            .collect();
        Self {
            files,
            shared,
            holders,
            pages,
        }
    }

    fn process(&self, process: &proto::Process) -> Process {
        let memory = process.memory.clone().unwrap_or_default();
        let layout = memory.layout.clone().unwrap_or_default();
        let credentials = process
            .threads
            .first()
            .and_then(|thread| thread.credentials.clone())
            .unwrap_or_default();
        let mappings: Vec<Mapping> = memory
            .mappings
            .iter()
            .map(|mapping| self.mapping(mapping, memory.space, &layout))
            .collect();
        Process {
            pid: process.pid,
            ppid: process.ppid,
            pgid: process.pgid,
            sid: process.sid,
            state: match process.state() {
                process::State::Running => "running",
                process::State::Stopped => "stopped",
                process::State::Zombie => "zombie",
            },
            name: process
                .threads
                .first()
                .map(|thread| String::from_utf8_lossy(&thread.name).into_owned())
                .unwrap_or_default(),
            uid: credentials.euid,
            gid: credentials.egid,
            cwd: process.cwd.clone(),
            exe: self.path(layout.exe),
            threads: process
                .threads
                .iter()
                .map(|thread| Thread {
                    tid: thread.tid,
                    name: String::from_utf8_lossy(&thread.name).into_owned(),
                })
                .collect(),
            mapped: mappings
                .iter()
                .map(|mapping| mapping.end.saturating_sub(mapping.start))
                .sum(),
            saved: mappings.iter().map(|mapping| mapping.saved).sum(),
            mappings,
            descriptors: process
                .descriptors
                .iter()
                .map(|held| self.descriptor(process.pid, held))
                .collect(),
        }
    }

    fn mapping(&self, mapping: &proto::Mapping, space: u64, layout: &proto::MmLayout) -> Mapping {
        use mapping::Kind;
        let heap = mapping.start < layout.brk
            && mapping.end > layout.start_brk
            && layout.start_brk < layout.brk;
        let (kind, what) = match mapping.kind() {
            Kind::Anonymous if mapping.stack => ("stack", mapping.name.clone()),
            Kind::Anonymous if heap => ("heap", mapping.name.clone()),
            Kind::Anonymous => ("private", mapping.name.clone()),
            Kind::AnonymousShared => ("shared", format!("object {}", mapping.file)),
            Kind::FilePrivate => ("file", self.path(mapping.file)),
            Kind::FileShared => ("shared file", self.path(mapping.file)),
            Kind::Vdso => ("kernel", "vdso".to_owned()),
            Kind::Vvar => ("kernel", "vvar".to_owned()),
        };
        let saved = match mapping.kind() {
            Kind::AnonymousShared => self.shared.get(&mapping.file).map_or(0, |memory| {
                let end = mapping
                    .offset
                    .saturating_add(mapping.end.saturating_sub(mapping.start));
                self.pages.between(memory.space, mapping.offset, end)
            }),
            _ => self.pages.between(space, mapping.start, mapping.end),
        };
        Mapping {
            start: mapping.start,
            end: mapping.end,
            protection: describe::protection(mapping.prot, mapping.kind()),
            kind,
            saved,
            what,
        }
    }

    fn descriptor(&self, pid: u32, held: &proto::Descriptor) -> Descriptor {
        let own = format!("{pid}:{}", held.fd);
        let others = self.holders.get(&held.file).into_iter().flatten();
        let file = self.files.get(&held.file);
        Descriptor {
            fd: held.fd,
            kind: file.map_or("unknown", |file| describe::kind(file)),
            access: file
                .map(|file| describe::access(file.flags))
                .unwrap_or_default(),
            close_on_exec: held.close_on_exec,
            what: file.map(|file| describe::what(file)).unwrap_or_default(),
            shared_with: others.filter(|holder| **holder != own).cloned().collect(),
        }
    }

    fn path(&self, file: u32) -> String {
        match self.files.get(&file).and_then(|file| file.kind.as_ref()) {
            Some(proto::open_file::Kind::Regular(regular)) => regular.path.clone(),
            Some(_) => self
                .files
                .get(&file)
                .map(|file| describe::what(file))
                .unwrap_or_default(),
            None => String::new(),
        }
    }
}
