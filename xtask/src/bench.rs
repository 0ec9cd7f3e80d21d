//! `cargo xtask bench`: every claim measured, beside other tools, in one run.

mod job;
mod kinds;
mod machine;
mod measure;
mod metric;
mod report;
mod scenario;
mod session;
mod statistics;
mod table;
mod throttle;
mod tool;

use crate::shell::{cargo, is_root, root, run, target};
use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use machine::{Limits, Machine};
use report::{Outcome, Report, Side, against, html, terminal};
use scenario::{Place, Scenario, Turn, Way};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tool::{Peer, Tools};

pub(crate) use measure::{Args as MeasureArgs, execute as measure};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Less memory, less time, three runs
    #[arg(long)]
    quick: bool,
    /// Another tool to run in turns with ckptd: criu=PATH, dmtcp=DIR [default: those in $PATH]
    #[arg(long, value_name = "NAME=PATH", value_parser = tool::parse_peer)]
    peer: Vec<Peer>,
    /// Only scenarios whose names begin so; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Runs of each scenario in each way [default: 5, with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: Option<u32>,
    /// The ckptd to measure [default: that of this source tree, built for release]
    #[arg(long, value_name = "PATH", env = "CKPTD_BIN")]
    ckptd: Option<PathBuf>,
    /// Where the report goes [default: target/bench]
    #[arg(long, value_name = "D")]
    out: Option<PathBuf>,
    /// A directory in memory, for images
    #[arg(long, value_name = "D", default_value = "/dev/shm")]
    dir: PathBuf,
    /// A directory on disk, for images [default: that of the report]
    #[arg(long, value_name = "D")]
    disk: Option<PathBuf>,
    /// An older report: tells what has become worse since, and fails if something of ckptd's has
    #[arg(long, value_name = "report.json")]
    against: Option<PathBuf>,
    /// Keep what the last report has of scenarios that are not run now
    #[arg(long)]
    add: bool,
    /// List the scenarios, and do nothing
    #[arg(long)]
    list: bool,
}

pub(crate) fn execute(args: &Args) -> Result<()> {
    let all = table::scenarios();
    if args.list {
        for scenario in &all {
            println!(
                "{:<20}{}: {}",
                scenario.name, scenario.kind.title, scenario.about
            );
        }
        return Ok(());
    }
    ensure!(
        is_root(),
        "checkpoints need rights that only root has: run this as root"
    );
    let old = args.against.as_deref().map(Report::read).transpose()?;
    let out = args.out.clone().unwrap_or_else(|| target().join("bench"));
    build_workloads(&out)?;
    let ckptd = match &args.ckptd {
        Some(path) => std::path::absolute(path)?,
        None => {
            run(cargo().args(["build", "--quiet", "--release", "--package", "ckptd"]))?;
            target().join("release/ckptd")
        }
    };
    let bench = Bench {
        tools: Tools::find(ckptd, &args.peer),
        memory: args.dir.clone(),
        disk: args.disk.clone().unwrap_or_else(|| out.clone()),
        programs: out.clone(),
        quick: args.quick,
    };
    let mut report = bench.report(&args.chosen(&all)?, args.runs)?;
    let path = out.join("report.json");
    if args.add && path.exists() {
        let names: Vec<&str> = all.iter().map(|scenario| scenario.name).collect();
        report.complete(Report::read(&path)?, &names);
    }
    terminal::print(&report);
    fs::write(&path, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let changes = old.map(|old| against::changes(&old, &report));
    let page = out.join("report.html");
    fs::write(&page, html::page(&report, changes.as_deref())?)
        .with_context(|| format!("cannot write {}", page.display()))?;
    println!("all of it: {}, {}", page.display(), path.display());
    let changes = changes.unwrap_or_default();
    if args.against.is_some() {
        against::print(&changes);
    }
    let own = |way: &&report::Results| way.side == Side::Ckptd && way.failure.is_some();
    if report
        .scenarios
        .iter()
        .any(|outcome| outcome.ways.iter().any(|way| own(&way)))
    {
        bail!("some of ckptd's measurements failed, see above");
    }
    ensure!(
        !changes
            .iter()
            .any(|change| change.is_worse() && change.way.starts_with("ckptd")),
        "some of ckptd's values are worse than they were, see above"
    );
    Ok(())
}

impl Args {
    /// Of all scenarios those that are to run. Real programs take long, so that a quick look leaves them out.
    fn chosen<'a>(&self, all: &'a [Scenario]) -> Result<Vec<&'a Scenario>> {
        // A whole name means that scenario only, not those that begin with it.
        let whole = |start: &String| all.iter().any(|scenario| scenario.name == start);
        let named = |scenario: &Scenario, start: &String| {
            scenario.name == start || !whole(start) && scenario.name.starts_with(start.as_str())
        };
        let unknown = self
            .only
            .iter()
            .find(|start| !all.iter().any(|scenario| named(scenario, start)));
        if let Some(unknown) = unknown {
            bail!("no scenario begins with {unknown}; `--list` names them");
        }
        let chosen = |scenario: &&Scenario| {
            let by_name = self.only.iter().any(|start| named(scenario, start));
            by_name || self.only.is_empty() && !(self.quick && scenario.name.starts_with("app-"))
        };
        Ok(all.iter().filter(chosen).collect())
    }
}

/// What all scenarios have in common.
struct Bench {
    tools: Tools,
    /// Directories in memory and on disk, for images.
    memory: PathBuf,
    disk: PathBuf,
    programs: PathBuf,
    quick: bool,
}

impl Bench {
    /// Runs scenarios, all their ways in turns.
    fn report(&self, chosen: &[&Scenario], runs: Option<u32>) -> Result<Report> {
        let runs = runs.unwrap_or(if self.quick { 3 } else { 5 });
        let machine = Machine::this(&self.memory, &self.disk);
        let bytes = if self.quick { 128 << 20 } else { 512 << 20 };
        let limits = Limits::measure(&self.disk, bytes).context("the machine's limits")?;
        let mut report = Report::new(machine, limits, self.tools.versions(), self.quick);
        let ways = |scenario: &Scenario| -> Vec<&'static Way> {
            let ways = scenario.kind.ways.iter();
            ways.filter(|way| self.tools.has(way.tool)).collect()
        };
        let turns: usize = chosen.iter().map(|scenario| ways(scenario).len()).sum();
        let bar = progress(turns as u64 * u64::from(runs));
        for scenario in chosen {
            let ways = ways(scenario);
            let mut outcome = Outcome::new(scenario, &ways);
            for run in 1..=runs {
                for (way, results) in ways.iter().zip(&mut outcome.ways) {
                    let now = format!("{}: {} {run}/{runs}", scenario.name, way.name);
                    if bar.is_hidden() {
                        eprintln!("{now}");
                    }
                    bar.set_message(now);
                    // What cannot be done once is not tried again.
                    if results.failure.is_none() {
                        match self.turn(scenario, way) {
                            Ok(sample) => results.add(sample, &report.limits),
                            Err(error) => results.failure = Some(format!("{error:#}")),
                        }
                    }
                    bar.inc(1);
                }
            }
            report.scenarios.push(outcome);
        }
        bar.finish_and_clear();
        Ok(report)
    }

    fn turn(&self, scenario: &Scenario, way: &Way) -> Result<scenario::Sample> {
        let place = if scenario.place == Place::Memory {
            &self.memory
        } else {
            &self.disk
        };
        let scratch = place.join(format!("ckptd-bench-{}", std::process::id()));
        fs::create_dir_all(&scratch)
            .with_context(|| format!("cannot make {}", scratch.display()))?;
        let sample = (scenario.kind.measure)(&Turn {
            scenario,
            way,
            tools: &self.tools,
            programs: &self.programs,
            scratch: &scratch,
            memory: &self.memory,
            quick: self.quick,
        });
        let _ = fs::remove_dir_all(&scratch);
        sample
    }
}

fn progress(turns: u64) -> ProgressBar {
    let bar = ProgressBar::new(turns);
    // The template is right, or the bar looks plain.
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({elapsed}, {eta} to go)")
    {
        bar.set_style(style);
    }
    bar
}

/// Compiles benches/workloads/*.c to `out`.
fn build_workloads(out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    for entry in fs::read_dir(root().join("benches/workloads"))? {
        let source = entry?.path();
        let (Some("c"), Some(name)) = (
            source.extension().and_then(|end| end.to_str()),
            source.file_stem(),
        ) else {
            continue;
        };
        run(Command::new("gcc")
            .args(["-O2", "-Wall", "-Wextra", "-pthread", "-o"])
            .arg(out.join(name))
            .arg(&source))?;
    }
    Ok(())
}
