//! What came out, as it is written to report.json.

pub(super) mod against;
pub(super) mod html;
mod plot;
pub(super) mod terminal;

use super::machine::{Limits, Machine};
use super::metric::Unit;
use super::scenario::{Sample, Scenario, Way};
use super::statistics::Spread;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Of this file; a reader refuses others.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) version: u32,
    /// Seconds since the epoch.
    pub(crate) taken_at: u64,
    pub(crate) quick: bool,
    pub(crate) machine: Machine,
    pub(crate) limits: Limits,
    /// Each tool, and what it says of its version.
    pub(crate) tools: Vec<(String, String)>,
    pub(crate) scenarios: Vec<Outcome>,
}

/// Of one scenario.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) about: String,
    /// The title of its kind, and how that is measured and checked.
    pub(crate) kind: String,
    pub(crate) kind_about: String,
    /// The first `plotted` of them are the most important.
    pub(crate) metrics: Vec<Quantity>,
    pub(crate) plotted: usize,
    pub(crate) ways: Vec<Results>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Quantity {
    pub(crate) key: String,
    pub(crate) title: String,
    pub(crate) unit: Unit,
}

/// Of one scenario in one way.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) name: String,
    /// Whether it is ckptd, a peer, or neither.
    pub(crate) side: Side,
    /// Of each metric, a value a run.
    pub(crate) values: BTreeMap<String, Vec<f64>>,
    /// What the machine would take at the least, in seconds.
    pub(crate) floors: BTreeMap<String, f64>,
    /// How many waits took up to so many ns, in all runs.
    pub(crate) histogram: BTreeMap<u64, u64>,
    /// Why there is nothing, or no more.
    pub(crate) failure: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    #[default]
    Bare,
    Ckptd,
    Peer,
}

impl Report {
    pub(crate) fn new(
        machine: Machine,
        limits: Limits,
        tools: Vec<(String, String)>,
        quick: bool,
    ) -> Self {
        Self {
            version: VERSION,
            taken_at: super::measure::now() / 1_000_000_000,
            quick,
            machine,
            limits,
            tools,
            scenarios: Vec::new(),
        }
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let read = || -> Result<Self> {
            let report: Self = serde_json::from_slice(&std::fs::read(path)?)?;
            ensure!(
                report.version == VERSION,
                "it is of version {}, not {VERSION}",
                report.version
            );
            Ok(report)
        };
        read().with_context(|| format!("cannot read the report {}", path.display()))
    }

    /// Takes over what another report has of scenarios that this one has not.
    pub(crate) fn complete(&mut self, other: Self, order: &[&str]) {
        let missing = other.scenarios.into_iter();
        let missing: Vec<_> = missing
            .filter(|old| self.scenarios.iter().all(|new| new.name != old.name))
            .collect();
        self.scenarios.extend(missing);
        let place = |outcome: &Outcome| order.iter().position(|name| *name == outcome.name);
        self.scenarios
            .sort_by_key(|outcome| place(outcome).unwrap_or(usize::MAX));
    }
}

impl Outcome {
    pub(crate) fn new(scenario: &Scenario, ways: &[&Way]) -> Self {
        let kind = scenario.kind;
        let quantity = |metric: &super::metric::Metric| Quantity {
            key: metric.key.into(),
            title: metric.title.into(),
            unit: metric.unit,
        };
        Self {
            name: scenario.name.into(),
            about: scenario.about.into(),
            kind: kind.title.into(),
            kind_about: kind.about.into(),
            metrics: kind.metrics.iter().map(quantity).collect(),
            plotted: kind.plotted,
            ways: ways.iter().map(|way| Results::new(way)).collect(),
        }
    }

    /// The best way of a side: the smallest median, and whose it is.
    pub(crate) fn best(&self, side: Side, metric: &str) -> Option<(&str, Spread)> {
        let ways = self.ways.iter().filter(|way| way.side == side);
        let spreads = ways.filter_map(|way| Some((way.name.as_str(), way.spread(metric)?)));
        spreads.min_by(|(_, a), (_, b)| a.median.total_cmp(&b.median))
    }

    /// Of the most important metrics, ckptd's best against the best of the peers.
    pub(crate) fn ratios(&self) -> Vec<(&Quantity, f64)> {
        let metrics = self.metrics[..self.plotted].iter();
        let ratio = |metric: &Quantity| {
            let best = |side| Some(self.best(side, &metric.key)?.1.median);
            // A stop that was too short to be seen is far to the left.
            let own = best(Side::Ckptd)?.max(f64::MIN_POSITIVE);
            let peer = best(Side::Peer)?;
            (peer > 0.0).then_some(own / peer)
        };
        metrics
            .filter_map(|metric| Some((metric, ratio(metric)?)))
            .collect()
    }
}

impl Results {
    fn new(way: &Way) -> Self {
        use super::tool::Which;
        let side = match way.tool {
            Which::Bare => Side::Bare,
            Which::Ckptd => Side::Ckptd,
            Which::Criu | Which::Dmtcp => Side::Peer,
        };
        Self {
            name: way.name.into(),
            side,
            ..Self::default()
        }
    }

    pub(crate) fn add(&mut self, sample: Sample, limits: &Limits) {
        for (metric, value) in sample.values {
            self.values
                .entry(metric.key.into())
                .or_default()
                .push(value);
        }
        for (metric, floor) in sample.floors {
            self.floors.insert(metric.key.into(), limits.floor(floor));
        }
        for (upper, count) in sample.histogram {
            *self.histogram.entry(upper).or_default() += count;
        }
    }

    pub(crate) fn spread(&self, metric: &str) -> Option<Spread> {
        self.values.get(metric).map(|values| Spread::of(values))
    }
}
