//! `ckptd checkpoint`: asks the job's supervisor, or does it itself where there is none.

use crate::bpf::Bpf;
use crate::cli::{Checkpoint, StoreDir};
use crate::failure::{Exit, Failure};
use crate::output::{print, print_json};
use crate::process;
use crate::progress::Meter;
use crate::registry::{self, Registry, State, default_name};
use crate::report::Report;
use crate::supervisor::protocol::{Reply, Request, ask};
use crate::take::{Order, Target, take};
use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::Instant;

/// Takes a checkpoint and says what it did.
pub(crate) fn execute(args: Checkpoint, since: Instant) -> Result<ExitCode, Failure> {
    let meter = Meter::new();
    let report = match (&args.job, args.pid) {
        (Some(name), _) => {
            let registry = Registry::open()?;
            let state = registry
                .find(name)?
                .ok_or_else(|| registry::unknown(&registry, name))?;
            let dir = if args.dir.is_some() {
                StoreDir { dir: args.dir }.path()
            } else {
                state.dir.clone()
            };
            let order = Order {
                dir,
                compress: args.compress,
                kill: args.kill,
                incremental: args.incremental,
                max_freeze: args.max_freeze,
                bpf: args.bpf.bpf,
                tcp: args.tcp,
                save_files: args.save_files,
                no_bpf: args.bpf.no_bpf,
            };
            of_job(since, &state, order, &meter)?
        }
        (None, Some(pid)) => {
            let order = Order {
                dir: StoreDir { dir: args.dir }.path(),
                compress: args.compress,
                kill: args.kill,
                incremental: false,
                max_freeze: args.max_freeze,
                bpf: args.bpf.bpf,
                tcp: args.tcp,
                save_files: args.save_files,
                no_bpf: args.bpf.no_bpf,
            };
            of_process(since, pid, args.name, &order, &meter)?
        }
        (None, None) => {
            return Err(Failure::new("neither a job nor a --pid is given").exit(Exit::Usage));
        }
    };
    drop(meter);
    if args.output.json {
        print_json(&report);
    } else {
        let killed = if report.killed {
            "; the job was killed"
        } else {
            ""
        };
        print(&format!("{}{killed}\n", report.summary()));
    }
    Ok(ExitCode::SUCCESS)
}

fn of_job(since: Instant, state: &State, order: Order, meter: &Meter) -> Result<Report, Failure> {
    // A supervisor that is stopped with its job cannot answer.
    if state.supervisor.is_alive() && !state.supervisor.is_stopped() {
        let hear = |reply: &Reply| match reply {
            Reply::Phase(name) => meter.phase(name),
            Reply::Bytes(done, total) => meter.bytes(*done, *total),
            Reply::Done(_) | Reply::Failed(_) => {}
        };
        match ask(&state.socket(), &Request::Checkpoint(order.clone()), hear) {
            Ok(Reply::Done(report)) => {
                return Ok(Report {
                    total_seconds: since.elapsed().as_secs_f64(),
                    ..report
                });
            }
            Ok(Reply::Failed(failure)) => return Err(failure),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Ok(_) | Err(_) if !state.supervisor.is_alive() => {
                return Err(Failure::new(format!(
                    "the supervisor of {:?} ended before it answered",
                    state.name
                ))
                .help("see `ckptd list` whether the checkpoint was taken, else try again"));
            }
            Ok(_) => return Err(Failure::new("the supervisor answered with nothing")),
            Err(error) => {
                return Err(Failure::because(
                    format!("cannot talk to the supervisor of {:?}", state.name),
                    error,
                ));
            }
        }
    }
    let root = state
        .live_root()
        .ok_or_else(|| Failure::new(format!("job {:?} has just ended", state.name)))?;
    let supervisor = Some(state.supervisor).filter(|supervisor| supervisor.is_alive());
    let stdio_of = supervisor.map_or(root.pid, |supervisor| supervisor.pid);
    let target = match state.init.or(supervisor) {
        Some(reaper) => Target::supervised(root.pid, reaper.pid, stdio_of),
        None => Target::tree(root.pid),
    };
    take(
        since,
        &state.name,
        &order,
        target,
        None,
        &Bpf::default(),
        meter,
    )
}

fn of_process(
    since: Instant,
    pid: u32,
    name: Option<String>,
    order: &Order,
    meter: &Meter,
) -> Result<Report, Failure> {
    let Some(comm) = process::name(pid) else {
        return Err(Failure::new(format!("there is no process {pid}")).help("look with `ps -e`"));
    };
    if process::descends_from(std::process::id(), pid) {
        return Err(Failure::new(format!(
            "ckptd itself descends from process {pid} and cannot stop it"
        ))
        .help("run ckptd from another terminal, or name a process further down (`pstree -p`)"));
    }
    let name = name.unwrap_or_else(|| format!("{}-{pid}", default_name(&comm)));
    take(
        since,
        &name,
        order,
        Target::tree(pid),
        None,
        &Bpf::default(),
        meter,
    )
}
