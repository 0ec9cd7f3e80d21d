//! `ckptd serve`: the page server of a lazily restored job.

use crate::cli::Serve;
use crate::failure::Failure;
use crate::lazy::{self, Desk, Progress, Record};
use crate::process::ProcessId;
use crate::progress::Meter;
use crate::stage;
use crate::timing::{Operation, Stopwatch};
use engine::Image;
use images::{PAGE_SIZE, Store};
use memory::serve::{PageSource, Server, Settings, Vault};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at how far it is.
const INTERVAL: Duration = Duration::from_millis(200);
/// After so many looks, what the job needs first is noted even if most of its memory is still to come: it may end before.
const LEARNED: u32 = 50;

/// Started by the job's supervisor, which has left the vault as descriptors 3 and 4.
pub(crate) fn execute(args: &Serve) -> Result<ExitCode, Failure> {
    let vault = engine::find_vault(std::process::id(), 3)
        .map_err(|error| Failure::because("`serve` is for ckptd itself", error))?;
    for fd in [3, 4] {
        let _ = nix::unistd::close(fd);
    }
    let record = Record::read(&args.entry).map_err(|error| {
        Failure::because(format!("cannot read {}", args.entry.display()), error)
    })?;
    serve(&record, &args.entry, vault)?;
    Ok(ExitCode::SUCCESS)
}

/// Serves until every page is in; gives how many there are.
fn serve(record: &Record, entry: &Path, vault: Vault) -> Result<u64, Failure> {
    let job = Store::open(&record.dir)?.job(&record.job)?;
    let checkpoint = job.checkpoint(Some(record.sequence))?;
    let known = job.working_set();
    let settings = Settings {
        journals: lazy::folder(entry),
        protect: record.protect,
        cache: record.cache,
        patience: Duration::from_secs(record.patience),
    };
    let held = record.find_vault();
    let huge = engine::huge_pages(checkpoint.snapshot());
    let staged = record.stage.as_deref();
    let staged = staged.and_then(|dir| stage::find(dir, &record.job, &checkpoint));
    let image = Image::new(checkpoint, &known).with_copy(staged);
    let server = Server::start(image, &record.memories(), vault, settings)
        .map_err(|error| Failure::because("cannot serve the job's memory", error))?;
    let desk = record
        .supervisor
        .map(|_| Desk::open(entry, Arc::clone(&server)));
    let desk = desk
        .transpose()
        .map_err(|error| Failure::because("cannot listen to the job's supervisor", error))?;
    let learn = || {
        // Who may read a store may not always write to it; then nothing is learned.
        if let Err(error) = job.learn(&known, &server.touched()) {
            tracing::debug!("{error}");
        }
    };
    let mut looks = 0;
    let meter = Meter::new();
    meter.phase("memory");
    let watch = Stopwatch::start(Instant::now(), "memory", &meter);
    while !server.wait(INTERVAL) {
        say(&server, entry, &meter);
        looks += 1;
        if looks == LEARNED {
            learn();
        }
    }
    say(&server, entry, &meter);
    if let (Some(supervisor), Some(desk)) = (record.supervisor, &desk) {
        // Fresh memory is missing too, until it is no longer watched for that.
        while supervisor.is_alive() && !desk.is_released(INTERVAL) {}
    }
    server.end();
    watch
        .stop(Operation::Serve, record.sequence, None)
        .keep(&job);
    drop(watch);
    let pages = server.progress().total;
    if let Some(vault) = held {
        engine::close_vault(&vault, record.descriptor);
    }
    drop(meter);
    let _ = std::fs::remove_dir_all(lazy::folder(entry));
    learn();
    // Where writes are watched, huge pages would be split again.
    for (pid, space) in record.alive().filter(|_| !record.protect) {
        engine::collapse(pid, huge.get(&space).map_or(&[], Vec::as_slice));
    }
    Ok(pages)
}

fn say<S: PageSource>(server: &Arc<Server<S>>, entry: &Path, meter: &Meter) {
    let told = server.progress();
    let bytes = |pages: u64| pages * PAGE_SIZE as u64;
    meter.bytes(bytes(told.done), bytes(told.total));
    let progress = Progress {
        server: ProcessId::own(),
        done: bytes(told.done),
        total: bytes(told.total),
        faults: told.faults,
        median_us: told.median.as_micros() as u64,
    };
    progress.write(entry);
}
