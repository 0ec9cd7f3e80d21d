//! A job is saved again and again while it writes.

use crate::bench::metric::Metric;
use crate::bench::scenario::{Floor, Kind, Sample, Turn, Way};
use crate::bench::session::Session;
use crate::bench::statistics::Spread;
use crate::bench::tool::Which;
use anyhow::Result;
use std::time::Duration;

pub(in crate::bench) static INCREMENTAL: Kind = Kind {
    title: "Incremental checkpoints",
    about: "The job writes to so many of its pages a second. It is saved once, then again and again with a second in between; of the later \
            checkpoints the medians are given, and of their stops, by the job's own clock, also the longest. \"Bytes per byte changed\" is what a \
            checkpoint adds to the images, against the pages that the job says it has written since the last one. At last the job is killed, brought \
            back, and compares all its pages with what it has written to them.",
    ways: &[
        Way::of("ckptd", Which::Ckptd)
            .run(&["--incremental"])
            .checkpoint(&["--incremental"]),
        Way::of("criu", Which::Criu).checkpoint(&["--track-mem"]),
        Way::of("criu, whole", Which::Criu),
        Way::of("dmtcp", Which::Dmtcp).run(&["--no-gzip"]),
    ],
    metrics: &[STOP, TOTAL, ADDED, LONGEST, FIRST, SHARE, MEMORY],
    plotted: 3,
    measure,
};

const STOP: Metric = Metric::seconds("stop", "stop");
const TOTAL: Metric = Metric::seconds("total", "in all");
const ADDED: Metric = Metric::bytes("added", "added to images");
const LONGEST: Metric = Metric::seconds("longest", "longest stop");
const FIRST: Metric = Metric::seconds("first", "first stop");
const SHARE: Metric = Metric::ratio("share", "bytes per byte changed");
const MEMORY: Metric = Metric::bytes("memory", "tool's memory");

/// Checkpoints after the first.
const ROUNDS: usize = 5;

fn measure(turn: &Turn) -> Result<Sample> {
    let mut session = Session::start(turn)?;
    let memory = session.memory()?;
    let first = session.checkpoint()?;
    let mut written = session.told.written();
    let (mut stops, mut totals, mut added, mut changed) = (vec![], vec![], vec![], vec![]);
    let mut peak = first.measured.peak;
    for _ in 0..if turn.quick { 2 } else { ROUNDS } {
        std::thread::sleep(Duration::from_secs(1));
        let taken = session.checkpoint()?;
        // It stood still just before the end: what was written since counts for the next one.
        let now = session.told.written();
        changed.push(((now - written) * 4096.0).min(memory as f64));
        written = now;
        stops.push(taken.stopped);
        totals.push(taken.measured.seconds());
        added.push(taken.bytes as f64);
        peak = peak.max(taken.measured.peak);
    }
    peak = peak.max(session.supervisor_memory());
    session.kill()?;
    session.restore()?;
    session.verify()?;

    let mut sample = Sample::default();
    let changed = Spread::of(&changed).median;
    let floor = Floor::Copy(changed as u64);
    sample.add(STOP, Spread::of(&stops).median);
    sample.add_above(TOTAL, Spread::of(&totals).median, floor);
    sample.add(ADDED, Spread::of(&added).median);
    sample.add(LONGEST, Spread::of(&stops).most);
    sample.add_above(FIRST, first.stopped, Floor::Copy(memory));
    if changed > 0.0 {
        sample.add(SHARE, Spread::of(&added).median / changed);
    }
    sample.add(MEMORY, peak as f64);
    Ok(sample)
}
