//! A job that ends at once.

use crate::bench::metric::Metric;
use crate::bench::scenario::{Floor, Kind, Sample, Turn, Way};
use crate::bench::session::launch;
use crate::bench::statistics::Spread;
use crate::bench::tool::Which;
use anyhow::{Result, ensure};
use std::fs;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

pub(in crate::bench) static LAUNCH: Kind = Kind {
    title: "Launching a job",
    about: "From the start of the command to its end, the median of twenty. That the job's exit status passes through is checked with `false`.",
    ways: &[
        Way::of("bare", Which::Bare),
        Way::of("ckptd run", Which::Ckptd).run(&[]),
        Way::of("dmtcp", Which::Dmtcp).run(&["--no-gzip"]),
    ],
    metrics: &[LAUNCHED],
    plotted: 1,
    measure,
};

const LAUNCHED: Metric = Metric::seconds("launch", "launch");

fn measure(turn: &Turn) -> Result<Sample> {
    fs::create_dir_all(turn.scratch.join("images"))?;
    let mut times = Vec::new();
    for _ in 0..if turn.quick { 5 } else { 20 } {
        let since = Instant::now();
        ensure!(run(turn, turn.scenario.program)?.success(), "it failed");
        times.push(since.elapsed().as_secs_f64());
    }
    ensure!(run(turn, "false")?.code() == Some(1), "another exit status");
    let mut sample = Sample::default();
    sample.add_above(LAUNCHED, Spread::of(&times).median, Floor::Spawn);
    Ok(sample)
}

fn run(turn: &Turn, program: &str) -> Result<ExitStatus> {
    let mut command = launch(
        turn,
        &format!("bench-{}", std::process::id()),
        Path::new(program),
    )?;
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command.stderr(Stdio::null()).status()?)
}
