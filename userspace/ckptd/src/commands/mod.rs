//! One module a command.

mod attach;
mod checkpoint;
mod completions;
mod diff;
mod doctor;
mod init;
mod list;
mod man;
mod prune;
mod restore;
mod run;
mod serve;
mod show;
mod verify;

use crate::cli::Command;
use crate::failure::{Exit, Failure};
use images::{Job, Store};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Carries out a command, given when the program began. `Ok` is a status other than that of a failure; `run` and `restore` may not return.
pub(crate) fn execute(command: Command, since: Instant) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(args) => run::execute(&args),
        Command::Checkpoint(args) => checkpoint::execute(args, since),
        Command::Restore(args) => restore::execute(&args, since),
        Command::List(args) => list::execute(&args),
        Command::Show(args) => show::execute(&args),
        Command::Verify(args) => verify::execute(&args),
        Command::Diff(args) => diff::execute(&args),
        Command::Prune(args) => prune::execute(&args),
        Command::Doctor(args) => doctor::execute(&args),
        Command::Completions(args) => completions::execute(&args),
        Command::Man(args) => man::execute(&args),
        Command::Attach(args) => attach::execute(&args),
        Command::Init(args) => init::execute(&args),
        Command::Serve(args) => serve::execute(&args),
    }
}

/// The job that is meant: the one named, else the only one in the store.
fn pick(dir: &Path, name: Option<&str>) -> Result<Job, Failure> {
    if let Some(name) = name {
        return named(dir, name);
    }
    let store = Store::open(dir)?;
    match store.jobs()?.as_slice() {
        [only] => Ok(store.job(only)?),
        [] => Err(
            Failure::new(format!("there is no job in {}", dir.display()))
                .help("name the checkpoint directory with --dir, or start a job with `ckptd run`"),
        ),
        many => Err(
            Failure::new(format!("{} holds several jobs", dir.display()))
                .help(format!("name one of them: {}", many.join(", ")))
                .exit(Exit::Usage),
        ),
    }
}

/// The job that is named, else all in the store.
fn pick_all(dir: &Path, name: Option<&str>) -> Result<Vec<Job>, Failure> {
    if let Some(name) = name {
        return Ok(vec![named(dir, name)?]);
    }
    let store = Store::open(dir)?;
    store
        .jobs()?
        .iter()
        .map(|name| Ok(store.job(name)?))
        .collect()
}

fn named(dir: &Path, name: &str) -> Result<Job, Failure> {
    let job = Store::open(dir).and_then(|store| store.job(name));
    job.map_err(|error| Failure::from(error).context(format!("cannot open job {name:?}")))
}
