//! What has changed since an older report.

use super::{Report, Results};
use crate::bench::metric::Unit;
use serde::{Deserialize, Serialize};

/// A value that differs by more than the noise.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) scenario: String,
    pub(crate) way: String,
    pub(crate) metric: String,
    pub(crate) unit: Unit,
    pub(crate) old: f64,
    pub(crate) new: f64,
}

impl Change {
    pub(crate) fn is_worse(&self) -> bool {
        self.new > self.old
    }
}

/// All of them, the worst first. Those of peers too: when these change as well, it is the machine.
pub(crate) fn changes(old: &Report, new: &Report) -> Vec<Change> {
    let mut found = Vec::new();
    for outcome in &new.scenarios {
        let Some(before) = old
            .scenarios
            .iter()
            .find(|before| before.name == outcome.name)
        else {
            continue;
        };
        for way in &outcome.ways {
            let same = |before: &&Results| before.name == way.name;
            let Some(before) = before.ways.iter().find(same) else {
                continue;
            };
            for metric in &outcome.metrics {
                let (Some(old), Some(new)) = (before.spread(&metric.key), way.spread(&metric.key))
                else {
                    continue;
                };
                if new.is_more_than(&old) || old.is_more_than(&new) {
                    found.push(Change {
                        scenario: outcome.name.clone(),
                        way: way.name.clone(),
                        metric: metric.title.clone(),
                        unit: metric.unit,
                        old: old.median,
                        new: new.median,
                    });
                }
            }
        }
    }
    let ratio = |change: &Change| change.new / change.old;
    found.sort_by(|a, b| ratio(b).total_cmp(&ratio(a)));
    found
}

pub(crate) fn print(changes: &[Change]) {
    println!("\nchanged by more than the noise:");
    if changes.is_empty() {
        println!("  nothing");
    }
    for change in changes {
        let Change {
            scenario,
            way,
            metric,
            unit,
            old,
            new,
        } = change;
        let word = if change.is_worse() { "WORSE" } else { "better" };
        println!(
            "  {word:<7}{scenario:<20}{way:<22}{metric:<22}{:>12} -> {:<12} x {:.2}",
            unit.show(*old),
            unit.show(*new),
            new / old
        );
    }
}
