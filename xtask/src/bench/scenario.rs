//! What a scenario is: a job, where its images go, what is done to it, in which ways.

use super::metric::Metric;
use super::tool::{Tools, Which};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What the job is.
    pub(crate) about: &'static str,
    pub(crate) kind: &'static Kind,
    /// One of benches/workloads.
    pub(crate) program: &'static str,
    pub(crate) arguments: &'static [&'static str],
    /// Instead, with --quick.
    pub(crate) quick: &'static [&'static str],
    pub(crate) place: Place,
}

/// Where images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file system in memory: the tool itself is measured.
    Memory,
    Disk,
    /// A disk that gives no more than so many MiB a second.
    Throttled(u64),
}

/// What is done to a job, and what is measured of it.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) title: &'static str,
    /// How it is measured, and how the result is checked.
    pub(crate) about: &'static str,
    pub(crate) ways: &'static [Way],
    /// The most important first.
    pub(crate) metrics: &'static [Metric],
    /// How many of them are worth a plot.
    pub(crate) plotted: usize,
    /// Does it once.
    pub(crate) measure: fn(&Turn) -> Result<Sample>,
}

/// A tool, and how it is used.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) tool: Which,
    /// Options for each of its commands; without those of `run`, ckptd takes a job that others started.
    pub(crate) run: Option<&'static [&'static str]>,
    pub(crate) checkpoint: &'static [&'static str],
    pub(crate) restore: &'static [&'static str],
}

impl Way {
    pub(crate) const fn of(name: &'static str, tool: Which) -> Self {
        Self {
            name,
            tool,
            run: None,
            checkpoint: &[],
            restore: &[],
        }
    }

    pub(crate) const fn run(self, options: &'static [&'static str]) -> Self {
        let run = Some(options);
        Self { run, ..self }
    }

    pub(crate) const fn checkpoint(self, checkpoint: &'static [&'static str]) -> Self {
        Self { checkpoint, ..self }
    }

    pub(crate) const fn restore(self, restore: &'static [&'static str]) -> Self {
        Self { restore, ..self }
    }
}

impl Scenario {
    pub(crate) const fn new(
        name: &'static str,
        kind: &'static Kind,
        about: &'static str,
        program: &'static str,
        arguments: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            about,
            kind,
            program,
            arguments,
            quick: arguments,
            place: Place::Memory,
        }
    }

    pub(crate) const fn quick(self, quick: &'static [&'static str]) -> Self {
        Self { quick, ..self }
    }

    pub(crate) const fn on(self, place: Place) -> Self {
        Self { place, ..self }
    }
}

/// A scenario, once, in one way.
pub(crate) struct Turn<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) way: &'a Way,
    pub(crate) tools: &'a Tools,
    /// Where the compiled workloads are.
    pub(crate) programs: &'a Path,
    /// An empty directory, where the scenario wants its images.
    pub(crate) scratch: &'a Path,
    /// A directory in memory.
    pub(crate) memory: &'a Path,
    pub(crate) quick: bool,
}

impl Turn<'_> {
    /// Those of the program.
    pub(crate) fn arguments(&self) -> &'static [&'static str] {
        if self.quick {
            self.scenario.quick
        } else {
            self.scenario.arguments
        }
    }
}

/// What came out of a turn.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    pub(crate) values: Vec<(Metric, f64)>,
    pub(crate) floors: Vec<(Metric, Floor)>,
    /// How many waits took up to so many ns: a power of two.
    pub(crate) histogram: BTreeMap<u64, u64>,
}

/// What the machine must do for a result at the least.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Floor {
    /// Copy so many bytes of memory.
    Copy(u64),
    /// Fill so many bytes of memory that nobody has had yet.
    Fill(u64),
    /// Write so many bytes to disk.
    Write(u64),
    /// Read so many bytes from disk.
    Read(u64),
    /// Take a page fault.
    Fault,
    /// Start a process, and see it end.
    Spawn,
}

impl Sample {
    pub(crate) fn add(&mut self, metric: Metric, value: f64) {
        self.values.push((metric, value));
    }

    /// A value that cannot be less than `floor`.
    pub(crate) fn add_above(&mut self, metric: Metric, value: f64, floor: Floor) {
        self.add(metric, value);
        self.floors.push((metric, floor));
    }
}
