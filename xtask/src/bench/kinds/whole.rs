//! A job is saved whole, killed, and brought back.

use crate::bench::machine::warm;
use crate::bench::metric::Metric;
use crate::bench::scenario::{Floor, Kind, Place, Sample, Turn, Way};
use crate::bench::session::Session;
use crate::bench::tool::Which;
use anyhow::Result;

pub(in crate::bench) static WHOLE: Kind = Kind {
    title: "Whole checkpoints",
    about: "The job is saved while it runs, killed once it has run on, and brought back from the images. \"Stopped\" is the longest gap \
            between two beats of the job's own clock, which beats every 100 µs; \"restore\" lasts until the job's next beat. On disk, \
            \"durable\" lasts until the file system says that all of the checkpoint is there, and restores read from the disk, not from memory. \
            Afterwards the job checks all that it holds.",
    ways: &[
        Way::of("ckptd", Which::Ckptd),
        Way::of("ckptd run", Which::Ckptd).run(&[]),
        Way::of("criu", Which::Criu),
        Way::of("dmtcp", Which::Dmtcp).run(&["--no-gzip"]),
    ],
    metrics: &[CHECKPOINT, STOPPED, RESTORE, DURABLE, IMAGE, MEMORY],
    plotted: 3,
    measure,
};

const CHECKPOINT: Metric = Metric::seconds("checkpoint", "checkpoint");
const DURABLE: Metric = Metric::seconds("durable", "durable");
const STOPPED: Metric = Metric::seconds("stopped", "stopped");
const RESTORE: Metric = Metric::seconds("restore", "restore");
const IMAGE: Metric = Metric::bytes("image", "image");
const MEMORY: Metric = Metric::bytes("memory", "tool's memory");

fn measure(turn: &Turn) -> Result<Sample> {
    let on_disk = turn.scenario.place != Place::Memory;
    let mut session = Session::start(turn)?;
    let memory = session.memory()?;
    let mut sample = Sample::default();

    warm(turn.memory, memory)?;
    let taken = session.checkpoint()?;
    sample.add_above(CHECKPOINT, taken.measured.seconds(), Floor::Copy(memory));
    sample.add_above(STOPPED, taken.stopped, Floor::Copy(memory));
    if on_disk {
        sample.add_above(DURABLE, taken.durable, Floor::Write(taken.bytes));
    }
    sample.add(IMAGE, taken.bytes as f64);
    let supervisor = session.supervisor_memory();
    session.kill()?;

    warm(turn.memory, memory)?;
    let restored = session.restore()?;
    let floor = if on_disk {
        Floor::Read(taken.bytes)
    } else {
        Floor::Fill(memory)
    };
    sample.add_above(RESTORE, restored.seconds(), floor);
    let peak = taken.measured.peak.max(restored.peak).max(supervisor);
    sample.add(MEMORY, peak as f64);
    session.verify()?;
    Ok(sample)
}
