//! A job that needs a part of its memory is brought back, with all of it and with none of it.

use crate::bench::measure::now;
use crate::bench::metric::Metric;
use crate::bench::scenario::{Floor, Kind, Place, Sample, Turn, Way};
use crate::bench::session::{Restored, Session};
use crate::bench::statistics::quantile;
use crate::bench::tool::Which;
use anyhow::Result;
use std::path::Path;
use std::time::Duration;

pub(in crate::bench) static LAZY: Kind = Kind {
    title: "Lazy restores",
    about: "The job reads a twentieth of its memory, here and there, over and over, and knows how long a round takes at its best. Times are from the \
            restore command on: to the job's first beat; to the end of its last round that took more than twice the usual (\"normal speed\"); until \
            all of its memory is in; and, in a second restore, until a job that reads all of its memory at once has done so and found it right. \
            \"Waits\" are those of its reads that took over 5 µs. \"Again\" is a restore that knows what the last one touched.",
    ways: &[
        Way::of("ckptd, eager", Which::Ckptd),
        Way::of("ckptd --lazy", Which::Ckptd).restore(&["--lazy"]),
        Way::of(AGAIN, Which::Ckptd).restore(&["--lazy"]),
        Way::of("criu", Which::Criu),
        Way::of("dmtcp", Which::Dmtcp).run(&["--no-gzip"]),
    ],
    metrics: &[RUNS, NORMAL, WHOLE, READ, WAIT, WAIT_99],
    plotted: 4,
    measure,
};

const AGAIN: &str = "ckptd --lazy, again";

const RUNS: Metric = Metric::seconds("runs", "runs");
const NORMAL: Metric = Metric::seconds("normal", "normal speed");
const WHOLE: Metric = Metric::seconds("whole", "all in");
const READ: Metric = Metric::seconds("read", "all read");
const WAIT: Metric = Metric::seconds("wait", "wait, median");
const WAIT_99: Metric = Metric::seconds("wait99", "wait, 99 %");

fn measure(turn: &Turn) -> Result<Sample> {
    let mut session = Session::start(turn)?;
    let memory = session.memory()?;
    // It learns how fast it can be.
    std::thread::sleep(Duration::from_millis(500));
    session.checkpoint()?;
    session.kill()?;
    if turn.way.name == AGAIN {
        let restored = session.restore()?;
        work(turn, &session, &restored)?;
        end(&mut session)?;
    }
    let restored = session.restore()?;
    let mut sample = Sample::default();
    sample.add(RUNS, restored.seconds());
    let (normal, whole) = work(turn, &session, &restored)?;
    sample.add(NORMAL, normal);
    let floor = if turn.scenario.place == Place::Memory {
        Floor::Fill(memory)
    } else {
        Floor::Read(memory)
    };
    sample.add_above(WHOLE, whole, floor);
    end(&mut session)?;
    add_waits(&mut sample, session.told.waits(restored.started));

    // Once more, and it reads everything at once.
    session.told.end();
    let restored = session.restore()?;
    session.told.verify()?;
    let read = now().saturating_sub(restored.started) as f64 / 1e9;
    sample.add_above(READ, read, floor);
    session.verify()?;
    Ok(sample)
}

/// Lets it work until its memory is in; gives when it was at its normal speed, and when its memory was in, in seconds.
fn work(turn: &Turn, session: &Session, restored: &Restored) -> Result<(f64, f64)> {
    let since = |at: u64| at.saturating_sub(restored.started) as f64 / 1e9;
    let running = restored.seconds();
    let mut whole = running;
    if turn.way.restore.contains(&"--lazy") {
        let entry = Path::new("/run/ckptd").join(&session.name).join("lazy");
        session
            .told
            .wait_until("whole", || (!entry.exists()).then_some(()))?;
        whole = since(now());
    }
    // A round that began before that is over.
    std::thread::sleep(Duration::from_millis(300));
    let until = restored.started + (whole * 1e9) as u64;
    let normal = session.told.last_slow(restored.started, until);
    Ok((normal.map_or(running, since), whole))
}

fn add_waits(sample: &mut Sample, mut waits: Vec<f64>) {
    waits.sort_unstable_by(f64::total_cmp);
    if waits.is_empty() {
        return;
    }
    sample.add_above(WAIT, quantile(&waits, 0.5), Floor::Fault);
    sample.add(WAIT_99, quantile(&waits, 0.99));
    for wait in waits {
        let upper = ((wait * 1e9) as u64).next_power_of_two();
        *sample.histogram.entry(upper).or_default() += 1;
    }
}

fn end(session: &mut Session) -> Result<()> {
    session.verify()?;
    let entry = Path::new("/run/ckptd").join(&session.name);
    session
        .told
        .wait_until("gone", || (!entry.exists()).then_some(()))?;
    session.told.again()
}
