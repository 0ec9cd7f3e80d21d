//! `ckptd show --timing`: where the time of the last checkpoint and restore went.

use crate::output::{Align, Style, Table, duration, moment, plain, styled};
use crate::timing::{Operation, Timing};
use images::Job;
use std::time::Duration;

/// The last of each operation that the job has had, in the order of a job's life.
pub(super) fn of(job: &Job) -> Vec<Timing> {
    let last = |operation| Timing::last(job, operation);
    let (checkpoint, restore) = (last(Operation::Checkpoint), last(Operation::Restore));
    // One of an earlier restore says nothing of this one.
    let begun = restore.as_ref().map(|restore| restore.began_at);
    let served = last(Operation::Serve).filter(|served| begun < Some(served.began_at));
    [checkpoint, restore, served]
        .into_iter()
        .flatten()
        .collect()
}

/// For people.
pub(super) fn render(job: &str, timings: &[Timing]) -> String {
    let mut text = String::new();
    for timing in timings {
        let (total, number) = (duration(timing.total()), timing.sequence);
        let done = match timing.operation {
            Operation::Checkpoint => format!("checkpoint {number} taken"),
            Operation::Restore => format!("restored from checkpoint {number}"),
            Operation::Serve => format!("memory of checkpoint {number} brought in while it ran"),
        };
        let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let stopped = timing.stopped_seconds.map_or(String::new(), |stopped| {
            format!(", the job stood still for {}", duration(seconds(stopped)))
        });
        let title = format!(
            "{}: {done} at {}, {total}{stopped}",
            plain(job),
            moment(timing.began_at)
        );
        text += &(styled(Style::Bold, &title) + "\n");
        let mut table = Table::new(&[
            ("PHASE", Align::Left),
            ("TIME", Align::Right),
            ("SHARE", Align::Right),
            ("", Align::Left),
        ]);
        for phase in &timing.phases {
            let share = phase.seconds / timing.total_seconds.max(f64::MIN_POSITIVE);
            table.row(vec![
                plain(&phase.name),
                duration(seconds(phase.seconds)),
                format!("{:.0} %", share * 100.0),
                "█".repeat((share * 40.0).round().clamp(0.0, 40.0) as usize),
            ]);
        }
        text += &table.render("  ");
    }
    text
}
