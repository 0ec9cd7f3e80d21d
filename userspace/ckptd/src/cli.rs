//! The command line.

use crate::bpf::{BpfArgs, TrackArgs};
use crate::take::{Compress, Tcp};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Saves running Linux jobs to disk and brings them back: after a crash, a walltime limit or a reboot
#[derive(Debug, Parser)]
#[command(name = "ckptd", version, after_help = EXIT_STATUS, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_STATUS: &str = "\
Exit status: that of the job for `run` and for `restore` in the foreground; else 0 done, 1 failed with the job \
unharmed, 2 wrong usage, 3 the checkpoint is damaged or this host cannot restore it. `run` gives 126 and 127, as \
shells do, when the command cannot be executed or is not found.

Environment: CKPTD_DIR is the default of --dir; CKPTD_LOG (error, warn, info, debug, trace) says what is logged.

Examples:
  ckptd run --name heat ./heat -n 4096      start a job
  ckptd checkpoint heat                     save it; it runs on
  ckptd restore heat                        bring it back after it was lost";

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a job and supervise it; its terminal, signals and exit status pass through untouched
    Run(Run),
    /// Save a running job; it runs on unless --kill is given
    Checkpoint(Checkpoint),
    /// Bring a job back from its checkpoint
    Restore(Restore),
    /// Serve the memory of a lazily restored job when its ckptd was killed
    Attach(Attach),
    /// Show the jobs of a checkpoint directory, their checkpoints, and which of them run
    List(List),
    /// Show what a checkpoint holds: processes, memory, descriptors, sizes, times
    Show(Show),
    /// Read everything that checkpoints name and report any damage
    Verify(Verify),
    /// Tell what changed in a job's memory from one checkpoint to another
    Diff(Diff),
    /// Delete old checkpoints, and what no checkpoint needs any more
    Prune(Prune),
    /// Tell what this kernel and user can do, what is missing, and how to get it
    Doctor(Doctor),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Write manual pages
    Man(Man),
    /// Be the init of a restored job's pid namespace
    #[command(hide = true)]
    Init(Init),
    /// Be the page server of a lazily restored job
    #[command(hide = true)]
    Serve(Serve),
}

impl Command {
    /// Whether it should print JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Checkpoint(args) => args.output.json,
            Self::Restore(args) => args.output.json,
            Self::List(args) => args.output.json,
            Self::Show(args) => args.output.json,
            Self::Verify(args) => args.output.json,
            Self::Diff(args) => args.output.json,
            Self::Prune(args) => args.output.json,
            Self::Doctor(args) => args.output.json,
            Self::Run(_)
            | Self::Attach(_)
            | Self::Completions(_)
            | Self::Man(_)
            | Self::Init(_)
            | Self::Serve(_) => false,
        }
    }
}

/// Where checkpoints are kept.
#[derive(Debug, Clone, Args)]
pub(crate) struct StoreDir {
    /// The checkpoint directory [default: $CKPTD_DIR, else ./ckptd]
    #[arg(long, value_name = "D")]
    pub dir: Option<PathBuf>,
}

impl StoreDir {
    /// The directory, absolute.
    pub(crate) fn path(&self) -> PathBuf {
        let from_environment = || {
            std::env::var_os("CKPTD_DIR")
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
        };
        let dir = self
            .dir
            .clone()
            .or_else(from_environment)
            .unwrap_or_else(|| PathBuf::from("ckptd"));
        std::path::absolute(&dir).unwrap_or(dir)
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How the supervisor of a job takes checkpoints.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("keeping").multiple(true).requires("every")
    .args(["keep", "keep_hourly", "keep_daily", "keep_weekly"]))]
pub(crate) struct Schedule {
    /// Copy memory while the job runs, and only what was written since the last checkpoint
    #[arg(long)]
    pub incremental: bool,
    /// Take a checkpoint this often, e.g. 10m or "1h 30m"
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub every: Option<std::time::Duration>,
    #[command(flatten)]
    pub keep: Keep,
    /// With --incremental: how long the job may stand still while its memory is copied; past that, it is copied from a fork
    #[arg(long, value_name = "TIME", default_value = crate::take::MAX_FREEZE, value_parser = humantime::parse_duration)]
    pub max_freeze: std::time::Duration,
    /// How hard checkpoints that are taken by the clock compress memory
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub compress: Compress,
    /// What to do with TCP connections that lead out of the job: at checkpoints taken by the clock, and of `restore` those of its checkpoint
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub tcp: Tcp,
    /// Save the content of files that the job has open for writing with such checkpoints
    #[arg(long)]
    pub save_files: bool,
    #[command(flatten)]
    pub track: TrackArgs,
}

impl Schedule {
    /// What the supervisor is to do, with checkpoints in `dir`.
    pub(crate) fn in_store(&self, dir: PathBuf, bpf: BpfArgs) -> crate::supervisor::Schedule {
        crate::supervisor::Schedule {
            order: crate::take::Order {
                dir,
                compress: self.compress,
                kill: false,
                incremental: self.incremental,
                max_freeze: self.max_freeze,
                bpf: bpf.bpf,
                tcp: self.tcp,
                save_files: self.save_files,
                no_bpf: bpf.no_bpf,
            },
            every: self.every,
            keep: images::Keep::from(self.keep).with_latest(),
            track: self.track,
        }
    }
}

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd run ./solver input.dat                      a job named \"solver\"
  ckptd run --name heat --dir /scratch/ck -- ./heat -v < in > out.log
  ckptd run make -j8 && echo built                  the exit status is the job's own
  ckptd run --incremental --every 10m --keep 3 --keep-hourly 24 ./solver

Signals sent to ckptd reach the job. When ckptd itself is killed, the job runs on.")]
pub(crate) struct Run {
    /// The job's name [default: the program's, with -2, -3, ... when a running job has it]
    #[arg(long, value_name = "N")]
    pub name: Option<String>,
    #[command(flatten)]
    pub store: StoreDir,
    #[command(flatten)]
    pub schedule: Schedule,
    #[command(flatten)]
    pub bpf: BpfArgs,
    /// The command to run, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Arguments of `checkpoint`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd checkpoint heat                   save the job, which runs on
  ckptd checkpoint --kill heat            save it and end it, without letting it run in between
  ckptd checkpoint --pid 4321 --name db   save a process and its descendants, whoever started them
  ckptd checkpoint --compress max heat    take less room, and more time

What could not be restored is refused before anything is written, with the reason and what to do about it.")]
#[command(group = clap::ArgGroup::new("what").required(true).args(["job", "pid"]))]
pub(crate) struct Checkpoint {
    /// A job started by `ckptd run` or `ckptd restore`
    pub job: Option<String>,
    /// A process, to be saved with its descendants
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub pid: Option<u32>,
    /// With --pid: the job's name [default: the process's, with its pid]
    #[arg(long, value_name = "N", requires = "pid")]
    pub name: Option<String>,
    /// The checkpoint directory [default: the one given to `ckptd run`; with --pid $CKPTD_DIR, else ./ckptd]
    #[arg(long, value_name = "D")]
    pub dir: Option<PathBuf>,
    /// Kill the job (SIGKILL) once its checkpoint is safely on disk
    #[arg(long)]
    pub kill: bool,
    /// Copy memory while the job runs, and only what was written since the job's last checkpoint of this kind
    #[arg(long, conflicts_with = "pid")]
    pub incremental: bool,
    /// With --incremental: how long the job may stand still while its memory is copied; past that, it is copied from a fork
    #[arg(long, value_name = "TIME", default_value = crate::take::MAX_FREEZE, value_parser = humantime::parse_duration)]
    pub max_freeze: std::time::Duration,
    /// How hard to compress memory
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub compress: Compress,
    /// What to do with TCP connections that lead out of the job
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub tcp: Tcp,
    /// Save the content of files that the job has open for writing too; `restore` puts it back, and keeps what has changed beside
    #[arg(long)]
    pub save_files: bool,
    #[command(flatten)]
    pub bpf: BpfArgs,
    #[command(flatten)]
    pub output: Output,
}

/// What to do with files that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Files {
    /// Cut each back to its size at the checkpoint; what is cut off is kept beside it
    Truncate,
    /// Leave them as they are
    Keep,
    /// Do not restore
    Fail,
}

impl From<Files> for engine::FilesPolicy {
    fn from(files: Files) -> Self {
        match files {
            Files::Truncate => Self::Truncate,
            Files::Keep => Self::Keep,
            Files::Fail => Self::Fail,
        }
    }
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd restore heat                              in the foreground; ends as the job ends
  ckptd restore --detach --pidfile heat.pid heat  in the background
  ckptd restore --lazy heat                       at once; its memory comes in as it is touched
  ckptd restore --stage /var/tmp/ck heat          for the next time, copied to a local disk meanwhile
  ckptd restore --at 3 heat                       from checkpoint 3, not the latest
  ckptd restore --as heat-2 heat                  a second copy, beside the first
  ckptd restore --dry-run heat                    print the steps, do nothing
  ckptd restore --dir /mnt/backup/ck              the only job of that directory

Pids are as they were; where one is taken, the job gets a pid namespace of its own in which they are.")]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["job", "dir"]))]
pub(crate) struct Restore {
    /// The job [default: the only one in the directory]
    pub job: Option<String>,
    #[command(flatten)]
    pub store: StoreDir,
    /// The checkpoint's number [default: the latest]
    #[arg(long, value_name = "SEQ")]
    pub at: Option<u64>,
    /// Restore it as another job, which may run beside the first: with processes, network, IPC and host name of its own
    #[arg(long = "as", value_name = "N")]
    pub name: Option<String>,
    /// What to do with files that grew since the checkpoint [default: truncate; with --as keep, as they are the other job's too]
    #[arg(long, value_enum, value_name = "HOW")]
    pub files: Option<Files>,
    /// Let the job run at once, and bring in its memory as it is touched, the rest meanwhile
    #[arg(long)]
    pub lazy: bool,
    /// With --lazy: memory to use for what has been read, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 16, requires = "lazy", value_parser = clap::value_parser!(u32).range(1..))]
    pub memory_limit: u32,
    /// With --lazy: for how long to try to read what cannot be read, before it is given up, in seconds
    #[arg(long, value_name = "S", default_value_t = 60, requires = "lazy")]
    pub patience: u64,
    /// Copy the checkpoint to this directory while the job runs, and read from there what is there already
    #[arg(long, value_name = "D")]
    pub stage: Option<PathBuf>,
    #[command(flatten)]
    pub schedule: Schedule,
    /// Let the job run in the background, and return once it does
    #[arg(long)]
    pub detach: bool,
    /// Write the pid of the job's first process to this file
    #[arg(long, value_name = "F", requires = "detach")]
    pub pidfile: Option<PathBuf>,
    /// Print the steps that would be taken, and take none
    #[arg(long, conflicts_with = "detach")]
    pub dry_run: bool,
    #[command(flatten)]
    pub bpf: BpfArgs,
    #[command(flatten)]
    pub output: Output,
    /// This is the process in the background; descriptor 3 leads to the one that started it
    #[arg(long, hide = true)]
    pub background: bool,
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd attach heat                     take checkpoints when asked to, and serve its memory if some is missing
  ckptd attach --every 10m heat         and take them by the clock, as `ckptd run` does

A job runs on when its ckptd is killed, but nobody supervises it; and one that was restored with --lazy waits as soon as it
touches memory that is not in yet. Signals sent to this ckptd end it, and do not reach the job. How the job ends it is not told.")]
pub(crate) struct Attach {
    /// The job
    pub job: String,
    #[command(flatten)]
    pub schedule: Schedule,
    #[command(flatten)]
    pub bpf: BpfArgs,
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The job's entry in the run directory
    pub entry: PathBuf,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd list
  ckptd list --dir /scratch/ck --json | jq '.[].name'")]
pub(crate) struct List {
    #[command(flatten)]
    pub store: StoreDir,
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd show heat                 the latest checkpoint of the job
  ckptd show --at 2 heat          an older one
  ckptd show --mappings heat      with every mapping of every process")]
pub(crate) struct Show {
    /// The job [default: the only one in the directory]
    pub job: Option<String>,
    #[command(flatten)]
    pub store: StoreDir,
    /// The checkpoint's number [default: the latest]
    #[arg(long, value_name = "SEQ")]
    pub at: Option<u64>,
    /// Show every mapping
    #[arg(long)]
    pub mappings: bool,
    /// Show where the time of the job's last checkpoint and restore went instead
    #[arg(long, conflicts_with_all = ["at", "mappings"])]
    pub timing: bool,
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd verify                    every checkpoint of every job
  ckptd verify heat               every checkpoint of one job
  ckptd verify --at 3 heat && rsync -a ckptd/ backup:ckptd/

Exit status 3 when anything is damaged: each line names the checkpoint, process and addresses it hurts.")]
pub(crate) struct Verify {
    /// The job [default: all]
    pub job: Option<String>,
    #[command(flatten)]
    pub store: StoreDir,
    /// The checkpoint's number [default: all]
    #[arg(long, value_name = "SEQ", requires = "job")]
    pub at: Option<u64>,
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd diff heat 3 4             from checkpoint 3 to 4
  ckptd diff heat 3               from checkpoint 3 to the latest
  ckptd diff --json heat 3 4 | jq '.processes[].mappings[] | select(.changed > 0)'

Contents are compared: a page that was written with what it held before has not changed.")]
pub(crate) struct Diff {
    /// The job
    pub job: String,
    /// The number of the older checkpoint
    pub from: u64,
    /// The number of the newer checkpoint [default: the latest]
    pub to: Option<u64>,
    #[command(flatten)]
    pub store: StoreDir,
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `prune`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd prune --keep 2 heat             keep the job's two latest checkpoints
  ckptd prune --keep 1 --dry-run        say what would go, of every job
  ckptd prune --keep 3 --keep-hourly 24 --keep-daily 7    the older, the fewer
  ckptd prune --keep 0 heat             delete all of its checkpoints
  ckptd prune                           delete only what no checkpoint needs any more

A checkpoint stays that any of the rules keeps. Segments of which most is needed by no checkpoint any more are rewritten.")]
pub(crate) struct Prune {
    /// The job [default: all]
    pub job: Option<String>,
    #[command(flatten)]
    pub store: StoreDir,
    #[command(flatten)]
    pub keep: Keep,
    /// Delete nothing, only tell
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: Output,
}

/// Which checkpoints of a job stay; without any of these, all.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Keep {
    /// Keep the N latest checkpoints
    #[arg(long, value_name = "N")]
    pub keep: Option<usize>,
    /// Keep the latest checkpoint of each of the N latest hours that have one
    #[arg(long, value_name = "N")]
    pub keep_hourly: Option<usize>,
    /// Keep the latest checkpoint of each of the N latest days that have one (UTC)
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<usize>,
    /// Keep the latest checkpoint of each of the N latest weeks that have one (from Monday, UTC)
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<usize>,
}

impl From<Keep> for images::Keep {
    fn from(keep: Keep) -> Self {
        Self {
            last: keep.keep,
            hourly: keep.keep_hourly,
            daily: keep.keep_daily,
            weekly: keep.keep_weekly,
        }
    }
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd doctor
  ckptd doctor --json | jq '.[] | select(.state == \"missing\")'")]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd completions bash > /etc/bash_completion.d/ckptd
  ckptd completions fish > ~/.config/fish/completions/ckptd.fish")]
pub(crate) struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckptd man /usr/local/share/man/man1   write ckptd.1, ckptd-run.1, ...
  ckptd man | man -l -                  read the first of them")]
pub(crate) struct Man {
    /// Where the pages go; without it, ckptd.1 goes to standard output
    pub dir: Option<PathBuf>,
}

/// Arguments of `init`.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// A FIFO that takes what becomes of the root
    #[arg(long)]
    pub status: PathBuf,
    /// The job's root, a child of this process
    pub root: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            let help = command.get_after_help().unwrap_or_default().to_string();
            assert!(help.contains("Examples:"), "{}", command.get_name());
        }
    }

    #[test]
    fn the_jobs_own_options_are_left_to_it() {
        let cli = Cli::try_parse_from([
            "ckptd", "run", "--name", "x", "prog", "--name", "y", "--", "z",
        ])
        .unwrap();
        let Command::Run(run) = cli.command else {
            panic!("not run")
        };
        assert_eq!(run.name.as_deref(), Some("x"));
        assert_eq!(run.command, ["prog", "--name", "y", "--", "z"]);
        assert!(Cli::try_parse_from(["ckptd", "run", "--nmae", "x", "prog"]).is_err());
        assert!(Cli::try_parse_from(["ckptd", "run", "--", "-odd-program", "-x"]).is_ok());
    }

    #[test]
    fn restore_takes_a_job_or_a_directory() {
        assert!(Cli::try_parse_from(["ckptd", "restore"]).is_err());
        assert!(Cli::try_parse_from(["ckptd", "restore", "--dir", "/s"]).is_ok());
        assert!(Cli::try_parse_from(["ckptd", "restore", "--dir", "/s", "heat"]).is_ok());
    }

    #[test]
    fn checkpoint_takes_a_job_or_a_pid() {
        assert!(Cli::try_parse_from(["ckptd", "checkpoint"]).is_err());
        assert!(Cli::try_parse_from(["ckptd", "checkpoint", "heat", "--pid", "4"]).is_err());
        assert!(Cli::try_parse_from(["ckptd", "checkpoint", "--pid", "0"]).is_err());
        assert!(Cli::try_parse_from(["ckptd", "checkpoint", "--pid", "4", "--kill"]).is_ok());
    }
}
