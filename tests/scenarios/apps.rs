//! Real programs, interrupted at three moments in each mode: the result is that of a run that was left alone.
//!
//! They live in a folder of their own, `CKPTD_APPS`, or `../shared/apps` beside this repository; without it nothing
//! is tested here. Each has a `run.sh prep|exec DIR` and a `check.sh DIR --print`. `CKPTD_TEST_APPS=all` runs those that take
//! minutes and install packages too, `CKPTD_TEST_APP_RUNS=100` each so many times, and `CKPTD_TEST_APP_RESULTS` names a file to
//! which each mode adds a line with its result: `cargo xtask apps` makes docs/COMPATIBILITY.md of them.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::fs;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tests::{Job, Place, manifest_dir, run, skip};

/// A program, and how it is made shorter or simpler.
struct App {
    name: &'static str,
    /// Set for `run.sh`.
    environment: &'static [(&'static str, &'static str)],
    /// How many words of the result are the same in every run.
    words: usize,
    /// Whether it runs without being asked for, in the mode `full`.
    always: bool,
    /// Its inputs, the result of a run that was left alone, and how long that took; made by whoever needs it first.
    alone: Mutex<Option<Alone>>,
}

struct Alone {
    inputs: Place,
    result: String,
    whole: Duration,
}

/// What is done at each moment: the arguments of each checkpoint, the last with `--kill`, and of the restore.
struct Mode {
    name: &'static str,
    checkpoints: &'static [&'static [&'static str]],
    restore: &'static [&'static str],
}

const FULL: Mode = Mode {
    name: "full",
    checkpoints: &[&["--kill"]],
    restore: &[],
};
const CHAIN: Mode = Mode {
    name: "incremental",
    checkpoints: &[&["--incremental"], &["--incremental", "--kill"]],
    restore: &["--incremental"],
};
const LAZY: Mode = Mode {
    name: "lazy",
    checkpoints: &[&["--kill"]],
    restore: &["--lazy"],
};

const MOMENTS: u32 = 3;

impl App {
    /// The folder of its scripts.
    fn folder(&self, apps: &Path) -> PathBuf {
        apps.join(self.name.replace('_', "-"))
    }

    fn script(&self, apps: &Path, name: &str) -> Command {
        let mut command = Command::new(self.folder(apps).join(name));
        command
            .envs(self.environment.iter().copied())
            .stdin(Stdio::null());
        command
    }

    /// The result of a finished run, one line.
    fn result(&self, apps: &Path, dir: &Path) -> String {
        let output = run(self.script(apps, "check.sh").arg(dir).arg("--print")).expect(0);
        let words = output.stdout.split_whitespace().take(self.words);
        words.collect::<Vec<_>>().join(" ")
    }

    /// Makes the inputs and lets it run without ckptd, in the very directory it is interrupted in later: some results tell it.
    fn leave_alone(&self, apps: &Path) -> Alone {
        let inputs = Place::new();
        let made = inputs.path().join("inputs");
        let mut prepare = self.script(apps, "run.sh");
        let prepared = prepare.arg("prep").arg(&made).stdout(Stdio::null());
        let prepared = prepared.stderr(Stdio::null()).status().unwrap();
        assert!(
            prepared.success(),
            "{}: not prepared: {prepared}",
            self.name
        );
        let dir = inputs.path().join(self.name);
        copy(&made, &dir);
        let start = Instant::now();
        let mut alone = self.script(apps, "run.sh");
        let status = alone.arg("exec").arg(&dir).status().unwrap();
        let whole = start.elapsed();
        let result = self.result(apps, &dir);
        assert!(
            status.success() && !result.trim().is_empty(),
            "{}: the uninterrupted run gives nothing: {status}",
            self.name
        );
        Alone {
            inputs,
            result,
            whole,
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let mut command = Command::new("cp");
    let status = command.arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("CKPTD_APPS")
        .map_or_else(|| manifest_dir().join("../../shared/apps"), PathBuf::from);
    folder.is_dir().then(|| folder.canonicalize().unwrap())
}

/// Checkpoints, kills and restores a job at three moments; says how many there were before it ended.
fn interrupt(job: &mut Job, mode: &Mode, pause: Duration) -> u32 {
    for moment in 0..MOMENTS {
        for arguments in mode.checkpoints {
            std::thread::sleep(pause / mode.checkpoints.len() as u32);
            let output = job.checkpoint(arguments);
            let soon = Duration::from_secs(5);
            if output.code() != 0 && tests::wait_at_most(soon, || job.ended()).is_some() {
                return moment;
            }
            let _ = output.expect(0);
        }
        job.kill_all();
        job.restore(mode.restore);
        job.await_running();
    }
    MOMENTS
}

/// One run, interrupted; gives the moments.
fn once(app: &App, mode: &Mode, apps: &Path, alone: &Alone) -> u32 {
    let dir = alone.inputs.path().join(app.name);
    let mut job = Job::prepare(app.name);
    let program = app.folder(apps).join("run.sh");
    let command = [program.as_os_str(), "exec".as_ref(), dir.as_os_str()];
    // Some are much faster at one time than at another: those are interrupted sooner.
    let mut pause = alone.whole / 6;
    let mut interrupted = 0;
    while interrupted == 0 {
        assert!(pause > alone.whole / 1000, "{} is over at once", app.name);
        copy(&alone.inputs.path().join("inputs"), &dir);
        job.run(&command, app.environment);
        interrupted = interrupt(&mut job, mode, pause);
        pause /= 2;
    }
    let limit = alone.whole * 20 + Duration::from_secs(60);
    if job.supervisor().is_some() {
        let code = tests::wait_at_most(limit, || job.ended());
        assert_eq!(code, Some(0), "{job}");
    }
    let found = app.result(apps, &dir);
    assert_eq!(found, alone.result, "another result\n{job}");
    interrupted
}

fn interrupted_at_three_moments(app: &App, mode: &Mode) {
    let what = format!("{} ({})", app.name, mode.name);
    let Some(apps) = folder() else {
        return skip(&what, "the folder of programs is not there (CKPTD_APPS)");
    };
    let always = app.always && mode.name == FULL.name;
    if !always && std::env::var_os("CKPTD_TEST_APPS").is_none() {
        return skip(&what, "not asked for (CKPTD_TEST_APPS=all)");
    }
    // The modes of a program run one after the other, in one directory.
    let mut alone = app.alone.lock().unwrap_or_else(PoisonError::into_inner);
    let runs = std::env::var("CKPTD_TEST_APP_RUNS").map_or(1, |runs| runs.parse().unwrap());
    let (mut done, mut moments) = (0, 0);
    let tried = catch_unwind(AssertUnwindSafe(|| {
        let alone = alone.get_or_insert_with(|| app.leave_alone(&apps));
        while done < runs {
            moments += once(app, mode, &apps, alone);
            done += 1;
        }
    }));
    let failure = tried.as_ref().err().map(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        said.or(panic.downcast_ref::<&str>().copied())
            .unwrap_or("?")
    });
    if let Some(file) = std::env::var_os("CKPTD_TEST_APP_RESULTS") {
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(file)
            .unwrap();
        let line = serde_json::json!({
            "program": app.name.replace('_', "-"), "mode": mode.name, "runs": done, "moments": moments, "failure": failure,
        });
        writeln!(file, "{line}").unwrap();
    }
    if let Err(panic) = tried {
        eprintln!("{what}: {done} runs went well before this one");
        resume_unwind(panic);
    }
    if moments < runs * MOMENTS {
        skip(
            &what,
            &format!("it ended after {moments} of {} moments", runs * MOMENTS),
        );
    }
}

macro_rules! apps {
    ($($name:ident: $environment:expr, $words:expr, $always:expr;)*) => {
        $(mod $name {
            use super::*;
            static APP: App = App {
                name: stringify!($name),
                environment: &$environment,
                words: $words,
                always: $always,
                alone: Mutex::new(None),
            };

            #[test]
            fn full() { interrupted_at_three_moments(&APP, &FULL); }
            #[test]
            fn incremental() { interrupted_at_three_moments(&APP, &CHAIN); }
            #[test]
            fn lazy() { interrupted_at_three_moments(&APP, &LAZY); }
        })*
    };
}

/// All words of a result.
const ALL: usize = usize::MAX;

apps! {
    omp: [("ITERS", "1500"), ("NT", "2")], ALL, true;
    pipeline: [], 3, true; // The fourth word depends on when a pipe's reader ends, alone too.
    numpy: [], ALL, false;
    octave: [], ALL, false;
    r: [], ALL, false;
    gcc: [], ALL, false;
    gromacs: [("STEPS", "3000")], ALL, false;
    lammps: [("STEPS", "800")], ALL, false;
    openfoam: [("N", "60")], ALL, false;
    ffmpeg: [("DUR", "8")], ALL, false;
    qe: [], ALL, false;
    mpi_openmpi: [("ITERS", "20000")], ALL, false;
    mpi_mpich: [("ITERS", "40000")], ALL, false;
    node: [("N", "300")], ALL, false;
    java: [("ITERS", "400")], ALL, false;
    redis: [("N", "3000")], ALL, false;
    nginx: [("N", "1500")], ALL, false;
    sqlite: [], ALL, false;
}
