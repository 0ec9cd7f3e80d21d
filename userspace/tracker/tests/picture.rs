//! The picture of a job, with processes of our own as the job. All of it needs the right to load BPF programs.

#![allow(clippy::panic, clippy::unwrap_used)] // A test fails by panicking.

use std::collections::HashSet;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use tracker::{Change, Hooks, Picture, Tracker};

/// A shell that does as it is told, in the picture from before its first child on.
struct Job {
    shell: Child,
}

impl Job {
    /// `script` begins once a line has come in.
    fn start(picture: &Picture, script: &str) -> Self {
        let mut shell = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        assert!(picture.add(shell.id()).unwrap());
        use std::io::Write;
        shell.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        Self { shell }
    }

    /// A line that it writes.
    fn line(&mut self) -> String {
        use std::io::Read;
        let mut line = String::new();
        let output = self.shell.stdout.as_mut().unwrap();
        let mut byte = [0];
        while output.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(char::from(byte[0]));
        }
        line
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Orphans come to us, and are waited for by nobody else.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn begin(processes: u32) -> Option<Picture> {
    match Picture::begin(processes, false) {
        Ok(picture) => {
            println!("{}", picture.hooks());
            Some(picture)
        }
        Err(error) if has_no_excuse() => panic!("{error}"),
        Err(error) => {
            println!("SKIPPED picture: {error}");
            None
        }
    }
}

/// Root on a kernel that describes itself has no excuse.
fn has_no_excuse() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let root = status.lines().any(|line| line.starts_with("Uid:\t0\t"));
    root && std::path::Path::new("/sys/kernel/btf/vmlinux").exists()
}

#[test]
fn daemons_belong_to_it_and_strangers_do_not() {
    let _alone = ONE_AT_A_TIME.lock();
    let Some(picture) = begin(64) else { return };
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    // The subshell ends at once, and its child is an orphan in a session of its own.
    let mut job = Job::start(
        &picture,
        "(setsid sh -c 'echo $$; exec sleep 60' &) ; sleep 60 & echo $!; wait",
    );
    let told: HashSet<u32> = [job.line(), job.line()]
        .iter()
        .map(|line| line.parse().unwrap())
        .collect();
    let expected: HashSet<u32> = told.iter().copied().chain([job.shell.id()]).collect();
    let found = || -> HashSet<u32> { picture.processes().unwrap().into_keys().collect() };
    // What has just ended may not have got there yet.
    for _ in 0..1000 {
        if found() == expected {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(found(), expected);
    assert_eq!(picture.missed().unwrap(), 0);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    for pid in told {
        Command::new("kill").arg(pid.to_string()).status().unwrap();
    }
    drop(job);
    for _ in 0..1000 {
        if found().is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("left: {:?}", found());
}

#[test]
fn an_exec_changes_everything_and_functions_tell_the_rest() {
    let _alone = ONE_AT_A_TIME.lock();
    let Some(picture) = begin(64) else { return };
    let mut job = Job::start(
        &picture,
        "echo begun; read go; exec 7</dev/null; trap 'true' USR1; echo opened; read go; exec cat",
    );
    let pid = job.shell.id();
    let now = || picture.processes().unwrap()[&pid];
    let tell = |job: &mut Job| {
        use std::io::Write;
        job.shell
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"go\n")
            .unwrap();
    };
    job.line();
    let before = now();
    tell(&mut job);
    job.line();
    let opened = now();
    if *picture.hooks() == Hooks::Functions {
        for change in [Change::Descriptors, Change::Signals] {
            assert_ne!(
                before.generation(change),
                opened.generation(change),
                "{change:?}"
            );
        }
        assert_eq!(
            before.generation(Change::Credentials),
            opened.generation(Change::Credentials)
        );
    } else {
        println!("SKIPPED functions: {}", picture.hooks());
        assert_eq!(before, opened);
    }
    tell(&mut job);
    tell(&mut job);
    // cat gives back what it gets.
    job.line();
    let executed = now();
    for (new, old) in executed.generations.iter().zip(opened.generations) {
        assert!(*new > old);
    }
    assert_eq!(executed.since, before.since);
}

#[test]
fn what_has_no_room_is_counted() {
    let _alone = ONE_AT_A_TIME.lock();
    let Some(picture) = begin(4) else { return };
    let mut job = Job::start(
        &picture,
        "for n in 1 2 3 4 5 6 7 8; do sleep 60 & done; echo done; wait",
    );
    job.line();
    let (found, missed) = (
        picture.processes().unwrap().len() as u64,
        picture.missed().unwrap(),
    );
    assert_eq!((found, missed), (4, 5));
}

#[test]
fn system_calls_tell_if_asked_to() {
    let _alone = ONE_AT_A_TIME.lock();
    let Ok(picture) = Picture::begin(64, true) else {
        let _ = begin(1);
        return;
    };
    let mut job = Job::start(
        &picture,
        "echo begun; read go; exec 7</dev/null; echo opened; cat",
    );
    let pid = job.shell.id();
    job.line();
    let before = picture.processes().unwrap()[&pid];
    {
        use std::io::Write;
        job.shell
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"go\n")
            .unwrap();
    }
    job.line();
    let after = picture.processes().unwrap()[&pid];
    assert_ne!(*picture.hooks(), Hooks::None(String::new()));
    assert_ne!(
        before.generation(Change::Descriptors),
        after.generation(Change::Descriptors)
    );
    assert_eq!(
        before.generation(Change::Timers),
        after.generation(Change::Timers)
    );
}

#[test]
fn the_tree_is_known_in_one_look() {
    let Ok(tracker) = Tracker::load() else {
        let _ = begin(1);
        return;
    };
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let tasks = tracker.tasks().unwrap().unwrap();
    let found = tasks.iter().find(|task| task.tid == child.id()).copied();
    child.kill().unwrap();
    // Nobody has waited for it yet.
    while tracker
        .tasks()
        .unwrap()
        .unwrap()
        .iter()
        .any(|task| task.tid == child.id() && !task.ended)
    {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.wait().unwrap();
    let found = found.unwrap();
    assert_eq!(
        (found.pid, found.parent, found.ended),
        (child.id(), std::process::id(), false)
    );
    let own: Vec<_> = tasks
        .iter()
        .filter(|task| task.pid == std::process::id())
        .collect();
    assert!(own.len() > 1 && own.iter().any(|task| task.tid == std::process::id()));
    assert!(
        tracker
            .tasks()
            .unwrap()
            .unwrap()
            .iter()
            .all(|task| task.tid != child.id())
    );
}
