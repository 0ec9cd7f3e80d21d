//! `ckptd show`: what a checkpoint holds.

mod describe;
pub(super) mod model;
mod text;
mod timing;

use super::pick;
use crate::cli::Show;
use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::registry::Registry;
use crate::supervisor::Watched;
use std::process::ExitCode;

/// Prints it.
pub(crate) fn execute(args: &Show) -> Result<ExitCode, Failure> {
    let job = pick(&args.store.path(), args.job.as_deref())?;
    if args.timing {
        let timings = timing::of(&job);
        if args.output.json {
            print_json(&timings);
        } else if timings.is_empty() {
            print(&format!(
                "{}: nothing is known of how long its checkpoints took\n",
                job.name()
            ));
        } else {
            print(&timing::render(job.name(), &timings));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let checkpoint = job.checkpoint(args.at)?;
    let mut model = model::Checkpoint::new(&job, &checkpoint)?;
    let running = Registry::open().and_then(|registry| registry.find(job.name()));
    let running = running.ok().flatten();
    let running = running.filter(|state| state.dir == args.store.path());
    model.watched = running.and_then(|state| Watched::read(&state.entry));
    if args.output.json {
        print_json(&model);
    } else {
        print(&text::render(&model, args.mappings));
    }
    Ok(ExitCode::SUCCESS)
}
