use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use images::{Checkpoint, Compression, Store, proto};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, ftruncate};

use super::*;
use crate::Silent;

const PAGE: usize = PAGE_SIZE as usize;

fn dumped(dir: &std::path::Path, sources: &[Source]) -> (u64, Checkpoint) {
    let job = Store::create(dir).unwrap().create_job("job").unwrap();
    let writer = job.begin(Compression::Fast, None).unwrap();
    let copied = dump(&writer, sources, 2, &Silent).unwrap();
    let pages = copied.iter().map(|copied| copied.pages.len()).sum();
    writer
        .commit(proto::Snapshot::default(), proto::Statistics::default())
        .unwrap();
    (pages, job.checkpoint(None).unwrap())
}

fn object(size: u64) -> OwnedFd {
    let fd = memfd_create(c"object", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&fd, size as i64).unwrap();
    fd
}

/// A stopped process, and its private mappings that can be written.
fn stopped() -> (Child, Vec<(Range<u64>, memory::Kind)>) {
    let mut child = Command::new("sh")
        .args(["-c", "echo ready; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 6])
        .unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
    let areas = maps.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let private = fields.next()?.starts_with("rw-p");
        let kind = if fields.nth(2)? == "0" {
            memory::Kind::Anonymous
        } else {
            memory::Kind::PrivateFile
        };
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        private.then(|| (hex(start)..hex(end), kind))
    });
    let areas = areas.collect();
    (child, areas)
}

fn read_all(pid: u32, areas: &[(Range<u64>, memory::Kind)]) -> Vec<u8> {
    let runs: Vec<_> = areas.iter().map(|(range, _)| range.clone()).collect();
    let mut bytes = vec![0; runs.iter().map(|run| (run.end - run.start) as usize).sum()];
    ProcessMemory::new(pid).read(&runs, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_process_gets_back_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, areas) = stopped();
    let pid = child.id();
    let before = read_all(pid, &areas);
    let (pages, checkpoint) = dumped(
        dir.path(),
        &[Source::Process {
            space: 3,
            pid,
            areas: areas.clone(),
            runs: false,
        }],
    );
    assert!(pages > 0);
    let mut kept: Vec<Range<u64>> = Vec::new();
    let pagemap = memory::Pagemap::open(pid).unwrap();
    areas
        .iter()
        .for_each(|(range, kind)| pagemap.content(range.clone(), *kind, &mut kept).unwrap());
    for run in kept {
        let noise = vec![0xa5; (run.end - run.start) as usize];
        ProcessMemory::new(pid).write(&[run], &noise).unwrap();
    }
    assert_ne!(read_all(pid, &areas), before);
    // Nothing was mapped anew here, so all zeros matter.
    let areas_to = areas
        .iter()
        .map(|(range, _)| Area {
            range: range.clone(),
            place: Place {
                zero_matters: true,
                later: false,
            },
        })
        .collect();
    let filled = fill(
        &checkpoint,
        &[Target::Process {
            space: 3,
            pid,
            areas: areas_to,
        }],
        &Silent,
    )
    .unwrap();
    assert_eq!(filled, pages);
    assert!(read_all(pid, &areas) == before);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_object_gets_back_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (object(300 * PAGE_SIZE), object(300 * PAGE_SIZE));
    let bytes: Vec<u8> = (0..100 * PAGE)
        .map(|at| (at / PAGE * 31 + at % 253) as u8)
        .collect();
    let runs = [
        7 * PAGE_SIZE..107 * PAGE_SIZE,
        200 * PAGE_SIZE..300 * PAGE_SIZE,
    ];
    Object::new(from.as_fd())
        .write(&runs, &[bytes.clone(), bytes].concat())
        .unwrap();
    let read = |object: &OwnedFd| {
        let mut bytes = vec![1; 300 * PAGE];
        Object::new(object.as_fd())
            .read(&[0..300 * PAGE_SIZE], &mut bytes)
            .unwrap();
        bytes
    };
    let before = read(&from);
    let (pages, checkpoint) = dumped(
        dir.path(),
        &[Source::Object {
            space: 9,
            areas: Object::new(from.as_fd()).data(300 * PAGE_SIZE).unwrap(),
            file: from.into(),
        }],
    );
    assert_eq!(pages, 200);
    let target = Target::Object {
        space: 9,
        file: to.try_clone().unwrap(),
        size: 300 * PAGE_SIZE,
    };
    assert_eq!(fill(&checkpoint, &[target], &Silent).unwrap(), pages);
    assert!(read(&to) == before);
}

#[test]
fn pages_without_a_place_refuse_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let from = object(10 * PAGE_SIZE);
    Object::new(from.as_fd())
        .write(&[9 * PAGE_SIZE..10 * PAGE_SIZE], &[1; PAGE])
        .unwrap();
    let (_, checkpoint) = dumped(
        dir.path(),
        &[Source::Object {
            space: 1,
            areas: Object::new(from.as_fd()).data(10 * PAGE_SIZE).unwrap(),
            file: from.into(),
        }],
    );
    let small = Target::Object {
        space: 1,
        file: object(9 * PAGE_SIZE),
        size: 9 * PAGE_SIZE,
    };
    let areas = vec![Area {
        range: 0..9 * PAGE_SIZE,
        place: Place {
            zero_matters: false,
            later: false,
        },
    }];
    let process = Target::Process {
        space: 1,
        pid: std::process::id(),
        areas,
    };
    for target in [small, process] {
        match fill(&checkpoint, &[target], &Silent) {
            Err(RestoreError::Image(error)) => assert!(error.is_damage()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn progress_ends_at_the_whole() {
    struct Last(Mutex<(u64, u64)>);
    impl Progress for Last {
        fn bytes(&self, done: u64, total: u64) {
            assert!(done <= total);
            *self.0.lock().unwrap() = (done, total);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let from = object(64 * PAGE_SIZE);
    Object::new(from.as_fd())
        .write(&[0..64 * PAGE_SIZE], &[1; 64 * PAGE])
        .unwrap();
    let job = Store::create(dir.path())
        .unwrap()
        .create_job("job")
        .unwrap();
    let writer = job.begin(Compression::None, None).unwrap();
    let last = Last(Mutex::new((0, 0)));
    dump(
        &writer,
        &[Source::Object {
            space: 1,
            areas: Object::new(from.as_fd()).data(64 * PAGE_SIZE).unwrap(),
            file: from.into(),
        }],
        2,
        &last,
    )
    .unwrap();
    assert_eq!(*last.0.lock().unwrap(), (64 * PAGE_SIZE, 64 * PAGE_SIZE));
}
