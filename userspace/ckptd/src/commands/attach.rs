//! `ckptd attach`: a new supervisor for a job whose own was killed.

use crate::cli::Attach;
use crate::failure::Failure;
use crate::registry::Registry;
use crate::supervisor::{self, Signals};
use std::process::ExitCode;

/// Goes on where the job's ckptd was ended, until the job ends or somebody ends this one.
pub(crate) fn execute(args: &Attach) -> Result<ExitCode, Failure> {
    let claim = Registry::open()?.adopt(&args.job)?;
    let signals = Signals::block()?;
    let dir = claim.state().dir.clone();
    supervisor::attach(claim, &signals, args.schedule.in_store(dir, args.bpf))
}
