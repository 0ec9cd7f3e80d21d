//! Whether and when eBPF programs are loaded.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::{Args, ValueEnum, builder::FalseyValueParser};
use engine::Scope;
use tracker::Tracker;

use crate::take::Order;

/// The options for and against them.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct BpfArgs {
    /// Read the job's state by eBPF programs, however small the job [default: where there is so much of it that they save time]
    #[arg(long, overrides_with = "no_bpf")]
    pub bpf: bool,
    /// Read the job's state from /proc, without eBPF programs
    #[arg(long, env = "CKPTD_NO_BPF", hide_env = true, value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub no_bpf: bool,
}

/// How a job is followed while it runs.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct TrackArgs {
    /// What tells that a process of the job changes, where the kernel's own functions may not (`ckptd doctor`)
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub track: Track,
    /// Processes of the job that are followed at the same time; others are looked for
    #[arg(long, hide = true, default_value_t = tracker::PROCESSES, value_parser = clap::value_parser!(u32).range(1..))]
    pub track_processes: u32,
}

/// What tells of changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Track {
    /// Nothing: ckptd looks from time to time
    #[default]
    Looks,
    /// System calls. Each of them, of every process of the machine, then takes some 50 to 150 ns longer
    Syscalls,
}

/// The programs, loaded when they are first needed and kept.
#[derive(Debug, Default)]
pub(crate) struct Bpf {
    tracker: OnceLock<Option<Tracker>>,
}

/// A job that ends sooner is not worth loading anything for.
const GRACE: Duration = Duration::from_secs(1);

impl Bpf {
    /// The programs to read a job with: those that are loaded; else, where they are wanted or worth it, after a while of loading.
    pub(crate) fn tracker(&self, order: &Order, job: Scope) -> Option<&Tracker> {
        if order.no_bpf && !order.bpf {
            return None;
        }
        match self.tracker.get() {
            Some(loaded) => loaded.as_ref(),
            None if order.bpf || engine::needs_bpf(job) => self.load(),
            None => None,
        }
    }

    /// The programs, if the kernel takes them; waits until they are loaded.
    fn load(&self) -> Option<&Tracker> {
        let load = || {
            let loaded = Tracker::load();
            if let Err(error) = &loaded {
                tracing::info!("without eBPF: {error}");
            }
            loaded.ok()
        };
        self.tracker.get_or_init(load).as_ref()
    }

    /// The programs, if they are loaded by now.
    pub(crate) fn loaded(&self) -> Option<&Tracker> {
        self.tracker.get()?.as_ref()
    }

    /// Whether it is known that the kernel does not take them.
    pub(crate) fn is_refused(&self) -> bool {
        self.tracker.get().is_some_and(Option::is_none)
    }

    /// Loads them on a thread of their own, after a while, and begins to follow a job.
    pub(crate) fn in_background(without: bool, track: TrackArgs) -> Arc<Self> {
        let bpf = Arc::new(Self::default());
        if !without {
            let theirs = Arc::clone(&bpf);
            let load = move || {
                std::thread::sleep(GRACE);
                let Some(tracker) = theirs.load() else {
                    return;
                };
                let calls = track.track == Track::Syscalls;
                match tracker.follow(track.track_processes, calls) {
                    Ok(picture) => tracing::info!("{}", picture.hooks()),
                    Err(error) => tracing::info!("the job is not followed: {error}"),
                }
            };
            if let Err(error) = std::thread::Builder::new().name("bpf".into()).spawn(load) {
                tracing::debug!("no thread to load eBPF programs: {error}");
            }
        }
        bpf
    }
}
