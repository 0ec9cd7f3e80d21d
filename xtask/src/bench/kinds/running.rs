//! A job works as it would without us; nobody saves it, or a supervisor does now and then.

use crate::bench::metric::Metric;
use crate::bench::scenario::{Kind, Sample, Turn, Way};
use crate::bench::session::Session;
use crate::bench::tool::Which;
use anyhow::{Context, Result};
use std::time::Duration;

pub(in crate::bench) static RUNNING: Kind = Kind {
    title: "While the job runs",
    about: "The job does the same over and over, and tells how long it took, on the average, once it has warmed up for a second and a half. With \
            \"--every 1s\" it is saved meanwhile, incrementally, each second. Criu is not there before it takes a checkpoint, so with it a job runs \
            as it does bare. The job checks what it has worked out.",
    ways: &[
        Way::of("bare", Which::Bare),
        Way::of("ckptd run", Which::Ckptd).run(&[]),
        Way::of("ckptd run --no-bpf", Which::Ckptd).run(&["--no-bpf"]),
        Way::of("ckptd run --every 1s", Which::Ckptd).run(&[
            "--incremental",
            "--every",
            "1s",
            "--keep",
            "1",
        ]),
        Way::of("dmtcp", Which::Dmtcp).run(&["--no-gzip"]),
    ],
    metrics: &[OPERATION, LONGEST],
    plotted: 1,
    measure,
};

const OPERATION: Metric = Metric::seconds("operation", "an operation");
const LONGEST: Metric = Metric::seconds("longest", "longest stop");

fn measure(turn: &Turn) -> Result<Sample> {
    let mut session = Session::start(turn)?;
    let started = crate::bench::measure::now();
    let seconds = if turn.quick { 2 } else { 6 };
    std::thread::sleep(Duration::from_secs(seconds));
    session.verify()?;
    let pace = session.told.text("pace");
    let pace: f64 = pace
        .trim()
        .parse()
        .context("the job does not say how fast it was")?;
    let mut sample = Sample::default();
    sample.add(OPERATION, pace / 1e9);
    sample.add(LONGEST, session.told.longest_gap(started));
    Ok(sample)
}
