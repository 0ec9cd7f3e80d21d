//! The page: everything in one file, readable on paper too.

use super::against::Change;
use super::{Outcome, Quantity, Report, Results, Side, plot};
use crate::bench::metric::Unit;
use anyhow::Result;
use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

pub(crate) fn page(report: &Report, changes: Option<&[Change]>) -> Result<String> {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>ckptd, measured</title>\n<style>\n{}</style>\n",
        include_str!("style.css")
    );
    page += &head(report);
    page += &glance(report)?;
    if let Some(changes) = changes {
        page += &since(changes);
    }
    let mut kind = "";
    for outcome in &report.scenarios {
        if outcome.kind != kind {
            kind = &outcome.kind;
            write!(
                page,
                "<h2 id=\"{}\">{}</h2>\n<p class=\"soft\">{}</p>\n",
                anchor(kind),
                escape(kind),
                escape(&outcome.kind_about)
            )?;
        }
        page += &section(outcome)?;
    }
    Ok(page)
}

fn head(report: &Report) -> String {
    let machine = &report.machine;
    let mut kinds: Vec<&str> = report
        .scenarios
        .iter()
        .map(|outcome| outcome.kind.as_str())
        .collect();
    kinds.dedup();
    let links = kinds
        .iter()
        .map(|kind| format!("<a href=\"#{}\">{}</a>", anchor(kind), escape(kind)));
    let mut facts = vec![
        (
            "when",
            date(report.taken_at)
                + if report.quick {
                    ", --quick: small jobs and few runs, a smoke test"
                } else {
                    ""
                },
        ),
        (
            "machine",
            format!(
                "{}, {} CPUs, {} of memory",
                machine.cpu,
                machine.cpus,
                Unit::Bytes.show(machine.memory as f64)
            ),
        ),
        (
            "kernel",
            format!(
                "Linux {}, transparent huge pages: {}",
                machine.kernel, machine.huge_pages
            ),
        ),
        (
            "images",
            format!(
                "in memory: {}; on disk: {}",
                machine.places[0], machine.places[1]
            ),
        ),
        ("load before", format!("{:.2}", machine.load)),
    ];
    for (name, version) in &report.tools {
        facts.push((name, version.clone()));
    }
    let facts: String = facts
        .iter()
        .map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value)))
        .collect();
    let limits = &report.limits;
    let rate = |rate: f64| format!("{:.2} GB/s", rate / 1e9);
    let limits = [
        ("memory copied, one thread", rate(limits.copy)),
        ("new memory filled, one thread", rate(limits.fill)),
        ("disk written and synced", rate(limits.write)),
        ("disk read", rate(limits.read)),
        ("first write to a page", Unit::Seconds.show(limits.fault)),
        (
            "a process started and ended",
            Unit::Seconds.show(limits.spawn),
        ),
    ];
    let (names, values): (String, String) = limits
        .iter()
        .map(|(name, value)| (format!("<th>{name}</th>"), format!("<td>{value}</td>")))
        .unzip();
    format!(
        "<h1>ckptd, measured</h1>\n<nav>{}</nav>\n<dl class=\"facts\">\n{facts}</dl>\n<h3>What this machine can do at best</h3>\n\
         <table class=\"limits\"><tr>{names}</tr>\n<tr>{values}</tr></table>\n\
         <p class=\"soft\">Where a result rests on one of these, the plots show it as an upright dash and the tables say what share of it was reached; \
         these limits are of one thread, so that a tool with several can exceed them.</p>\n",
        links.collect::<Vec<_>>().join(" ")
    )
}

fn glance(report: &Report) -> Result<String> {
    let plot = plot::glance(report)?;
    if plot.is_empty() {
        return Ok("<h2>Beside other tools</h2>\n<p>None was there.</p>\n".into());
    }
    let mut page = format!(
        "<h2>Beside other tools</h2>\n<p class=\"soft\">ckptd's median by that of the best peer, on a logarithmic scale; all of them ran in turns, in one run. \
         The first metric of a scenario is a disc, the second a square, the third a triangle.</p>\n{plot}\n"
    );
    let mut rows = String::new();
    for outcome in &report.scenarios {
        for (metric, ratio) in outcome.ratios().iter().filter(|(_, ratio)| *ratio > 1.0) {
            let best = |side| outcome.best(side, &metric.key);
            if let (Some((_, own)), Some((name, peer))) = (best(Side::Ckptd), best(Side::Peer)) {
                let show = |value| metric.unit.show(value);
                writeln!(
                    rows,
                    "<tr><td>{}</td><td class=\"text\">{}</td><td>{}</td><td>{}</td><td class=\"text\">{}</td><td><b class=\"peer\">× {ratio:.2}</b></td></tr>",
                    escape(&outcome.name),
                    escape(&metric.title),
                    show(own.median),
                    show(peer.median),
                    escape(name)
                )?;
            }
        }
    }
    page += "<h3>Where a peer is better</h3>\n";
    page += &if rows.is_empty() {
        "<p>Nowhere in these scenarios.</p>\n".into()
    } else {
        format!(
            "<table><tr><th>scenario</th><th class=\"text\">metric</th><th>ckptd</th><th>peer</th><th class=\"text\">which</th><th>ratio</th></tr>\n{rows}</table>\n"
        )
    };
    Ok(page)
}

fn since(changes: &[Change]) -> String {
    let mut page = String::from(
        "<h2>Changed since the older report</h2>\n<p class=\"soft\">What differs by more than 5 % and by more than the spread of both.</p>\n",
    );
    if changes.is_empty() {
        return page + "<p>Nothing.</p>\n";
    }
    page += "<table><tr><th>scenario</th><th class=\"text\">way</th><th class=\"text\">metric</th><th>was</th><th>is</th><th>ratio</th></tr>\n";
    for change in changes {
        let class = if change.is_worse() { "worse" } else { "own" };
        page += &format!(
            "<tr><td>{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td><td>{}</td><td>{}</td><td><b class=\"{class}\">× {:.2}</b></td></tr>\n",
            escape(&change.scenario),
            escape(&change.way),
            escape(&change.metric),
            change.unit.show(change.old),
            change.unit.show(change.new),
            change.new / change.old
        );
    }
    page + "</table>\n"
}

fn section(outcome: &Outcome) -> Result<String> {
    let mut page = format!(
        "<section>\n<h3>{}<small>{}</small></h3>\n{}{}",
        escape(&outcome.name),
        escape(&outcome.about),
        plot::bars(outcome)?,
        plot::histogram(outcome)?
    );
    let measured = |metric: &&Quantity| {
        outcome
            .ways
            .iter()
            .any(|way| way.values.contains_key(&metric.key))
    };
    let metrics: Vec<&Quantity> = outcome.metrics.iter().filter(measured).collect();
    if !metrics.is_empty() {
        page += "<table><tr><th></th>";
        metrics
            .iter()
            .for_each(|metric| page += &format!("<th>{}</th>", escape(&metric.title)));
        page += "</tr>\n";
        for way in outcome.ways.iter().filter(|way| !way.values.is_empty()) {
            let class = match way.side {
                Side::Bare => "bare",
                Side::Ckptd => "ckptd",
                Side::Peer => "peer",
            };
            page += &format!("<tr class=\"{class}\"><td>{}</td>", escape(&way.name));
            metrics.iter().for_each(|metric| page += &cell(way, metric));
            page += "</tr>\n";
        }
        page += "</table>\n";
    }
    for way in &outcome.ways {
        if let Some(failure) = &way.failure {
            page += &format!(
                "<div class=\"failure\"><b>{}</b> could not:<pre>{}</pre></div>\n",
                escape(&way.name),
                escape(failure)
            );
        }
    }
    Ok(page + "</section>\n")
}

/// A median, its range, and what share of the machine's limit it is.
fn cell(way: &Results, metric: &Quantity) -> String {
    let Some(spread) = way.spread(&metric.key) else {
        return "<td>-</td>".into();
    };
    let show = |value| metric.unit.show(value);
    let mut cell = format!(
        "<td>{}<small>{} to {}</small>",
        show(spread.median),
        show(spread.least),
        show(spread.most)
    );
    if let Some(floor) = way
        .floors
        .get(&metric.key)
        .filter(|floor| **floor > spread.median / 100.0)
    {
        cell += &format!(
            "<small>{:.0} % of the limit</small>",
            floor / spread.median * 100.0
        );
    }
    cell + "</td>"
}

fn date(seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time)
        .to_string()
        .replace('T', " ")
        .replace('Z', " UTC")
}

fn anchor(title: &str) -> String {
    title.to_lowercase().replace(' ', "-")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
