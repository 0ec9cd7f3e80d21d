//! `ckptd restore`: rebuilds a job and becomes its supervisor.

use super::pick;
use crate::cli::{Files, Restore};
use crate::failure::{Exit, Failure};
use crate::lazy::{Serving, Source};
use crate::output::{print, print_json, tell};
use crate::progress::Meter;
use crate::registry::{Registry, write_atomically};
use crate::stage;
use crate::supervisor::{self, Post, Signals};
use crate::timing::{Operation, Stopwatch};
use engine::{RestoreError, RestoreOptions};
use images::Checkpoint;
use nix::sys::signal::SigSet;
use rustix::process::{Pid, WaitOptions, waitpid};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often a restore is planned anew because somebody took a number the job needs.
const MOST_RACES: u32 = 10;

/// What the process in the background tells the one that started it, and what that one prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Running {
    job: String,
    sequence: u64,
    /// The root, as seen from here.
    pid: u32,
    /// It has a pid namespace of its own.
    namespace: bool,
}

/// The plan, for scripts.
#[derive(Serialize)]
struct DryRun {
    job: String,
    sequence: u64,
    namespace: bool,
    steps: Vec<String>,
}

/// Ends as the job ends, or with --detach once it runs.
pub(crate) fn execute(args: &Restore, since: Instant) -> Result<ExitCode, Failure> {
    if args.detach && !args.background {
        return detach(args);
    }
    // The first thing: the way back must not stay open in what is started later.
    let report = if args.background {
        Some(take_report()?)
    } else {
        None
    };
    let meter = Meter::new();
    let watch = Stopwatch::start(since, "image", &meter);
    let dir = args.store.path();
    let job = pick(&dir, args.job.as_deref())?;
    let checkpoint = job.checkpoint(args.at)?;
    // Signals stay as they are until the job runs, so that Ctrl-C ends a restore that is under way; then they are the job's.
    let signals = RefCell::new(None);
    let take_signals = || {
        signals.borrow_mut().get_or_insert_with(Signals::block);
    };
    let default = args.name.as_ref().map_or(Files::Truncate, |_| Files::Keep);
    let files = args.files.unwrap_or(default);
    let mut options = RestoreOptions {
        files: files.into(),
        apart: args.name.is_some(),
        tcp: args.schedule.tcp.into(),
        init: Vec::new(),
        lazy: None,
        watch: args.schedule.incremental,
        before_it_runs: &take_signals,
        progress: &watch,
    };

    if args.dry_run {
        let plan = engine::plan(&checkpoint, &options)?;
        if args.output.json {
            let (job, sequence) = (job.name().to_owned(), checkpoint.sequence());
            print_json(&DryRun {
                job,
                sequence,
                namespace: plan.namespace(),
                steps: plan.lines(),
            });
        } else {
            print(&plan.to_string());
        }
        return Ok(ExitCode::SUCCESS);
    }

    watch.lap("registry");
    let registry = Registry::open()?;
    let name = args.name.as_deref().unwrap_or(job.name());
    let claim = registry
        .claim(name, false, &dir, &checkpoint.snapshot().command)
        .map_err(|failure| {
            let help = "it would run twice; end the one that runs first, or restore a second copy beside it: --as NAME";
            if failure.exit == Exit::Failed {
                failure.help(help)
            } else {
                failure
            }
        })?;
    let status = Post::status_path(&claim);
    let entry = claim.path().to_owned();
    let post = Post::prepare(claim)?;
    let program = std::env::current_exe()
        .map_err(|error| Failure::because("cannot find ckptd itself", error))?;
    options.init = vec![
        program,
        PathBuf::from("init"),
        PathBuf::from("--status"),
        status,
    ];
    let serving = RefCell::new(None);
    let stage_dir = args.stage.as_deref().map(std::path::absolute);
    let stage_dir = stage_dir
        .transpose()
        .map_err(|error| Failure::because("cannot find the directory of --stage", error))?;
    let staged = stage_dir.as_deref();
    let staged = staged.and_then(|dir| stage::find(dir, job.name(), &checkpoint));
    let source = Source {
        dir: dir.clone(),
        job: job.name().to_owned(),
        sequence: checkpoint.sequence(),
        stage: stage_dir.clone(),
        cache: (args.memory_limit as usize) << 20,
        patience: Duration::from_secs(args.patience),
    };
    let serve = |job| {
        let started = Serving::start(&entry, job, source.clone()).map_err(|failure| {
            let (doing, source) = ("starting the page server".to_owned(), failure.message);
            RestoreError::System {
                doing,
                source: std::io::Error::other(source),
            }
        })?;
        serving.replace(Some(started));
        Ok(())
    };
    if args.lazy {
        let user = checkpoint
            .snapshot()
            .namespaces
            .as_ref()
            .and_then(|own| own.user.as_ref());
        let inside = user.map_or(Ok(()), |_| {
            Err("it is in a user namespace, where nobody may have its memory served".to_owned())
        });
        match engine::can_be_lazy().and(inside) {
            Ok(()) => {
                options.lazy = Some(&serve);
                // Soft-dirty bits tell nothing of pages that come in.
                options.watch &= engine::tracks_by_userfaultfd();
            }
            Err(why) => tell(&format!(
                "ckptd: the job starts when all of its memory is in: {why}\n"
            )),
        }
    }
    let rebuild_from = |from: &Checkpoint| {
        watch.lap("plan");
        engine::rebuild(from, &engine::plan(from, &options)?, &options)
    };
    let rebuild = || match &staged {
        // What is wrong with a copy is not wrong with the checkpoint. A page server falls back by itself, frame by frame.
        Some(staged) if !args.lazy => rebuild_from(staged).or_else(|error| {
            if error.is_race() {
                return Err(error);
            }
            rebuild_from(&checkpoint)
        }),
        _ => rebuild_from(&checkpoint),
    };
    let mut rebuilt = rebuild();
    for nth in 0..MOST_RACES {
        if !matches!(&rebuilt, Err(error) if error.is_race()) {
            break;
        }
        // Who took it may be another restore, which then runs beside this one for a while.
        std::thread::sleep(Duration::from_millis(10) * nth);
        rebuilt = rebuild();
    }
    let rebuilt = rebuilt?;
    watch
        .stop(Operation::Restore, checkpoint.sequence(), None)
        .keep(&job);
    let signals = signals.take().unwrap_or_else(Signals::block)?;
    drop(watch);
    drop(meter);

    let running = Running {
        job: name.to_owned(),
        sequence: checkpoint.sequence(),
        pid: rebuilt.root,
        namespace: rebuilt.init.is_some(),
    };
    if let (Some(dir), None) = (stage_dir, &staged) {
        stage::copy(dir, job.name().to_owned(), checkpoint.clone());
    }
    let mut tracking = rebuilt.tracking;
    if let Some(tracking) = &mut tracking {
        tracking.set_base(checkpoint);
    }
    if let Some(pidfile) = &args.pidfile {
        // The job runs: a file that cannot be written does not end it.
        if let Err(error) = write_atomically(pidfile, format!("{}\n", rebuilt.root).as_bytes()) {
            Failure::because(format!("cannot write {}", pidfile.display()), error).print(false);
        }
    }
    if let Some(mut report) = report {
        let line = serde_json::to_string(&running).unwrap_or_default();
        if let Err(error) = writeln!(report, "{line}") {
            tracing::debug!("whoever started the restore has gone: {error}");
        }
    }
    let serving = serving.take();
    if let (Some(tracking), Some(serving)) = (&mut tracking, &serving) {
        tracking.expect(Box::new(serving.pages()));
    }
    let schedule = args.schedule.in_store(dir, args.bpf);
    post.supervise(
        signals,
        (rebuilt.root, rebuilt.init),
        schedule,
        tracking,
        serving,
    )
    .mirror()
}

/// Starts ckptd anew as the job's supervisor in a process group of its own, as a shell does with `&`, and waits
/// until it says that the job runs, or ends because it does not.
fn detach(args: &Restore) -> Result<ExitCode, Failure> {
    let (receiver, sender) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| Failure::because("cannot make a pipe to the supervisor", errno))?;
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    // Before anything that could end the options.
    arguments.insert(
        arguments
            .iter()
            .position(|word| word == "restore")
            .map_or(1, |at| at + 1),
        "--background".into(),
    );
    let mask = SigSet::thread_get_mask()
        .map_err(|errno| Failure::because("cannot start the supervisor of the job", errno))?;
    let child = supervisor::spawn_self(&arguments, &[(sender.as_raw_fd(), 3)], false, &mask)?;
    drop(sender);

    let mut line = String::new();
    let read = BufReader::new(File::from(receiver)).read_line(&mut line);
    if let (Ok(1..), Ok(running)) = (read, serde_json::from_str::<Running>(&line)) {
        if args.output.json {
            print_json(&running);
        } else {
            let Running {
                job, sequence, pid, ..
            } = running;
            print(&format!(
                "{job}: restored from checkpoint {sequence}, running as process {pid}\n"
            ));
        }
        return Ok(ExitCode::SUCCESS);
    }
    // It has said itself why.
    let child = i32::try_from(child).ok().and_then(Pid::from_raw);
    let ended = waitpid(child, WaitOptions::empty()).ok().flatten();
    match ended
        .and_then(|(_, status)| status.exit_status())
        .and_then(|status| u8::try_from(status).ok())
    {
        Some(status @ 1..) => Ok(ExitCode::from(status)),
        _ => Err(Failure::new("the restore was ended before the job ran")),
    }
}

/// The pipe that `detach` left as descriptor 3, under a number that is closed on exec.
fn take_report() -> Result<File, Failure> {
    let opened = File::options().write(true).open("/proc/self/fd/3");
    let report = opened.map_err(|error| {
        Failure::because("--background is for ckptd itself", error).exit(Exit::Usage)
    })?;
    nix::unistd::close(3).map_err(|errno| Failure::because("cannot close descriptor 3", errno))?;
    Ok(report)
}
