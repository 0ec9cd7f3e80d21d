//! Real programs, interrupted at three moments each: the result is that of a run that was left alone.
//!
//! They live in a folder of their own, `CKPTD_APPS`, or `../shared/apps` beside this repository; without it nothing
//! is tested here. `CKPTD_TEST_APPS=all` runs those that take minutes and install packages too.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tests::{Job, Place, manifest_dir, run, skip};

/// A program, and how it is made shorter or simpler.
struct App {
    name: &'static str,
    /// Set for `run.sh`.
    environment: &'static [(&'static str, &'static str)],
    /// How many words of the result are the same in every run.
    words: usize,
    /// Whether it runs without being asked for.
    always: bool,
}

impl App {
    /// The folder of its scripts.
    fn folder(&self) -> String {
        self.name.replace('_', "-")
    }
}

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("CKPTD_APPS")
        .map_or_else(|| manifest_dir().join("../../shared/apps"), PathBuf::from);
    folder.is_dir().then(|| folder.canonicalize().unwrap())
}

fn script(app: &App, apps: &Path, name: &str) -> Command {
    let mut command = Command::new(apps.join(app.folder()).join(name));
    command
        .envs(app.environment.iter().copied())
        .stdin(Stdio::null());
    command
}

/// The result of a finished run, one line.
fn result(app: &App, apps: &Path, dir: &Path) -> String {
    let output = run(script(app, apps, "check.sh").arg(dir).arg("--print")).expect(0);
    let words = output.stdout.split_whitespace().take(app.words);
    words.collect::<Vec<_>>().join(" ")
}

const MOMENTS: u32 = 3;

/// Checkpoints, kills and restores a job at three moments; says how many there were before it ended.
fn interrupt(job: &mut Job, pause: Duration) -> u32 {
    for moment in 0..MOMENTS {
        std::thread::sleep(pause);
        let output = job.checkpoint(&["--kill"]);
        let soon = Duration::from_secs(5);
        if output.code() != 0 && tests::wait_at_most(soon, || job.ended()).is_some() {
            return moment;
        }
        let _ = output.expect(0);
        job.kill_all();
        job.restore(&[]);
        job.await_running();
    }
    MOMENTS
}

fn interrupted_at_three_moments(app: &App) {
    let Some(apps) = folder() else {
        return skip(app.name, "the folder of programs is not there (CKPTD_APPS)");
    };
    if !app.always && std::env::var_os("CKPTD_TEST_APPS").is_none() {
        return skip(app.name, "not asked for (CKPTD_TEST_APPS=all)");
    }
    let place = Place::new();
    let inputs = place.path().join("alone");
    let mut prepare = script(app, &apps, "run.sh");
    prepare
        .arg("prep")
        .arg(&inputs)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let prepared = prepare.status().unwrap();
    assert!(
        prepared.success(),
        "{} could not be prepared: {prepared}",
        app.name
    );

    // The run that is left alone, for the result and to know how long it takes.
    let copy = |to: &Path| {
        let status = Command::new("cp")
            .arg("-a")
            .arg(&inputs)
            .arg(to)
            .status()
            .unwrap();
        assert!(status.success());
    };
    let mut job = Job::prepare(app.name);
    let dir = job.work.join(app.name);
    copy(&dir);
    let start = Instant::now();
    let status = script(app, &apps, "run.sh")
        .arg("exec")
        .arg(&dir)
        .status()
        .unwrap();
    let whole = start.elapsed();
    let expected = result(app, &apps, &dir);
    assert!(
        status.success() && !expected.trim().is_empty(),
        "{}: the uninterrupted run gives nothing",
        app.name
    );

    let program = apps.join(app.folder()).join("run.sh");
    let command = [program.as_os_str(), "exec".as_ref(), dir.as_os_str()];
    // Some are much faster at one time than at another: those are interrupted sooner.
    let mut pause = whole / 6;
    let mut interrupted = 0;
    while interrupted == 0 {
        assert!(pause > whole / 1000, "{} is over at once", app.name);
        fs::remove_dir_all(&dir).unwrap();
        copy(&dir);
        job.run(&command, app.environment);
        interrupted = interrupt(&mut job, pause);
        pause /= 2;
    }
    if interrupted < MOMENTS {
        skip(
            app.name,
            &format!("it ended after {interrupted} of {MOMENTS} moments"),
        );
    }
    let limit = whole * 20 + Duration::from_secs(60);
    if job.supervisor().is_some() {
        let code = tests::wait_at_most(limit, || job.ended());
        assert_eq!(code, Some(0), "{job}");
    }
    let found = result(app, &apps, &dir);
    assert_eq!(found, expected, "{}: another result\n{job}", app.name);
}

macro_rules! apps {
    ($($name:ident: $environment:expr, $words:expr, $always:expr;)*) => {
        $(#[test]
        fn $name() {
            interrupted_at_three_moments(&App {
                name: stringify!($name),
                environment: &$environment,
                words: $words,
                always: $always,
            });
        })*
    };
}

/// All words of a result.
const ALL: usize = usize::MAX;

apps! {
    omp: [("ITERS", "1500"), ("NT", "2")], ALL, true;
    pipeline: [], 3, true; // The fourth word depends on when a pipe's reader ends, alone too.
    numpy: [], ALL, true;
    octave: [], ALL, false;
    r: [], ALL, false;
    gcc: [], ALL, false;
    gromacs: [], ALL, false;
    openfoam: [], ALL, false;
    ffmpeg: [], ALL, false;
    mpi_openmpi: [("ITERS", "20000")], ALL, false;
    mpi_mpich: [("ITERS", "40000")], ALL, false;
    node: [("N", "300")], ALL, false;
    java: [("ITERS", "400")], ALL, false;
    redis: [("N", "3000")], ALL, false;
}
