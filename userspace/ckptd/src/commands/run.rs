//! `ckptd run`: a job, and its supervisor.

use crate::cli::Run;
use crate::failure::Failure;
use crate::registry::{Registry, default_name};
use crate::supervisor::{self, Post, Signals};
use std::process::ExitCode;

/// Starts the job and ends as it ends.
pub(crate) fn execute(args: &Run) -> Result<ExitCode, Failure> {
    let command: Vec<String> = args
        .command
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let default = default_name(command.first().map_or("", String::as_str));
    let name = args.name.as_deref().unwrap_or(&default);
    let claim = Registry::open()?.claim(name, args.name.is_none(), &args.store.path(), &command)?;
    // Before the job starts: what comes while it does must not get lost.
    let signals = Signals::block()?;
    let post = Post::prepare(claim)?;
    let root = supervisor::spawn(&args.command, signals.original())?;
    let schedule = args.schedule.in_store(args.store.path(), args.bpf);
    post.supervise(signals, (root, None), schedule, None, None)
        .mirror()
}
