//! Whether and when eBPF programs are loaded.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::{Args, builder::FalseyValueParser};
use tracker::Tracker;

/// The option that does without.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct BpfArgs {
    /// Read the job's state from /proc, without eBPF programs [default: only where the kernel does not take them]
    #[arg(long, env = "CKPTD_NO_BPF", hide_env = true, value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub no_bpf: bool,
}

/// The programs, loaded when they are first needed and kept.
#[derive(Debug, Default)]
pub(crate) struct Bpf {
    tracker: OnceLock<Option<Tracker>>,
}

/// A job that ends sooner is not worth loading anything for.
const GRACE: Duration = Duration::from_secs(1);

impl Bpf {
    /// The programs, if the kernel takes them; waits until they are loaded. `without`: none.
    pub(crate) fn tracker(&self, without: bool) -> Option<&Tracker> {
        if without {
            return None;
        }
        let load = || {
            let loaded = Tracker::load();
            if let Err(error) = &loaded {
                tracing::info!("without eBPF: {error}");
            }
            loaded.ok()
        };
        self.tracker.get_or_init(load).as_ref()
    }

    /// Loads them on a thread of their own, after a while.
    pub(crate) fn in_background(without: bool) -> Arc<Self> {
        let bpf = Arc::new(Self::default());
        if !without {
            let theirs = Arc::clone(&bpf);
            let load = move || {
                std::thread::sleep(GRACE);
                theirs.tracker(false);
            };
            if let Err(error) = std::thread::Builder::new().name("bpf".into()).spawn(load) {
                tracing::debug!("no thread to load eBPF programs: {error}");
            }
        }
        bpf
    }
}
