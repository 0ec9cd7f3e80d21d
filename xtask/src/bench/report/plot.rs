//! The plots, as SVG that stands in the page.

use super::{Outcome, Quantity, Report, Results, Side};
use crate::bench::metric::Unit;
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 1040;
/// Of a line.
const HEIGHT: i32 = 24;
/// Of the names on the left, and of the values right of the bars.
const NAMES: i32 = 196;
const VALUES: i32 = 88;
const HEAD: i32 = 26;

const INK: RGBColor = RGBColor(28, 36, 48);
const SOFT: RGBColor = RGBColor(91, 102, 117);
const LINE: RGBColor = RGBColor(221, 226, 233);
const OWN: RGBColor = RGBColor(31, 95, 168);
const PEER: RGBColor = RGBColor(201, 116, 50);
const BARE: RGBColor = RGBColor(130, 140, 152);

/// Draws `height` pixels with `draw`.
fn svg(height: i32, draw: impl FnOnce(&Area) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height as u32)).into_drawing_area();
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(text)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

fn write(
    area: &Area,
    text: &str,
    at: (i32, i32),
    color: RGBColor,
    side: HPos,
    size: i32,
) -> Result<()> {
    let style = ("sans-serif", size)
        .into_font()
        .color(&color)
        .pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style))
        .map_err(failed)
}

fn line(area: &Area, from: (i32, i32), to: (i32, i32), color: RGBColor, width: u32) -> Result<()> {
    area.draw(&PathElement::new([from, to], color.stroke_width(width)))
        .map_err(failed)
}

fn fill(area: &Area, from: (i32, i32), to: (i32, i32), color: &impl Color) -> Result<()> {
    area.draw(&Rectangle::new([from, to], color.filled()))
        .map_err(failed)
}

fn color_of(side: Side) -> RGBColor {
    match side {
        Side::Ckptd => OWN,
        Side::Peer => PEER,
        Side::Bare => BARE,
    }
}

/// A bar a way, a panel a metric: the bar ends at the median, the thin line goes from the least to the most, a dot is a run, and the upright dash is
/// what the machine takes at the least.
pub(super) fn bars(outcome: &Outcome) -> Result<String> {
    let ways: Vec<&Results> = outcome
        .ways
        .iter()
        .filter(|way| !way.values.is_empty())
        .collect();
    let metrics: Vec<&Quantity> = outcome.metrics[..outcome.plotted]
        .iter()
        .filter(|metric| ways.iter().any(|way| way.values.contains_key(&metric.key)))
        .collect();
    if metrics.is_empty() {
        return Ok(String::new());
    }
    let panel = (WIDTH as i32 - NAMES) / metrics.len() as i32;
    svg(HEAD + HEIGHT * ways.len() as i32 + 6, |area| {
        for (row, way) in ways.iter().enumerate() {
            let middle = HEAD + HEIGHT * row as i32 + HEIGHT / 2;
            write(
                area,
                &way.name,
                (NAMES - 12, middle),
                color_of(way.side),
                HPos::Right,
                17,
            )?;
        }
        for (index, metric) in metrics.iter().enumerate() {
            let left = NAMES + panel * index as i32;
            write(area, &metric.title, (left, HEAD / 2), INK, HPos::Left, 17)?;
            panel_of(area, &ways, metric, left, panel - VALUES - 14)?;
        }
        Ok(())
    })
}

fn panel_of(
    area: &Area,
    ways: &[&Results],
    metric: &Quantity,
    left: i32,
    width: i32,
) -> Result<()> {
    let most = ways
        .iter()
        .filter_map(|way| way.spread(&metric.key))
        .map(|spread| spread.most);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| left + (value / most * f64::from(width)) as i32;
    for (row, way) in ways.iter().enumerate() {
        let top = HEAD + HEIGHT * row as i32;
        let middle = top + HEIGHT / 2;
        let Some(spread) = way.spread(&metric.key) else {
            write(area, "-", (left + 4, middle), SOFT, HPos::Left, 16)?;
            continue;
        };
        let color = color_of(way.side);
        fill(
            area,
            (left, top + 5),
            (x(spread.median).max(left + 1), top + HEIGHT - 5),
            &color.mix(0.55),
        )?;
        line(
            area,
            (x(spread.least), middle),
            (x(spread.most), middle),
            INK,
            1,
        )?;
        for value in way.values.get(&metric.key).into_iter().flatten() {
            area.draw(&Circle::new((x(*value), middle), 2, INK.mix(0.75).filled()))
                .map_err(failed)?;
        }
        if let Some(floor) = way
            .floors
            .get(&metric.key)
            .filter(|floor| **floor <= most && **floor > most / 100.0)
        {
            line(
                area,
                (x(*floor), top + 2),
                (x(*floor), top + HEIGHT - 2),
                INK,
                2,
            )?;
        }
        let text = metric.unit.show(spread.median);
        write(
            area,
            &text,
            (x(spread.most).max(x(spread.median)) + 8, middle),
            INK,
            HPos::Left,
            16,
        )?;
    }
    line(
        area,
        (left, HEAD),
        (left, HEAD + HEIGHT * ways.len() as i32),
        LINE,
        1,
    )
}

/// How ckptd's best stands to the best of the peers, in every scenario: less than 1 is left of the middle.
pub(super) fn glance(report: &Report) -> Result<String> {
    const SPAN: f64 = 6.0; // powers of two to each side
    let rows: Vec<(&Outcome, Vec<f64>)> = report
        .scenarios
        .iter()
        .map(|outcome| {
            (
                outcome,
                outcome.ratios().iter().map(|(_, ratio)| *ratio).collect(),
            )
        })
        .filter(|(_, ratios): &(_, Vec<f64>)| !ratios.is_empty())
        .collect();
    if rows.is_empty() {
        return Ok(String::new());
    }
    let height = 20;
    let bottom = HEAD + height * rows.len() as i32;
    let (left, right) = (NAMES, WIDTH as i32 - 24);
    let x = |ratio: f64| {
        let place = (ratio.log2().clamp(-SPAN, SPAN) + SPAN) / (2.0 * SPAN);
        left + (place * f64::from(right - left)) as i32
    };
    svg(bottom + 34, |area| {
        fill(area, (x(1.0), HEAD), (right, bottom), &PEER.mix(0.07))?;
        write(
            area,
            "← ckptd is better",
            (x(1.0) - 12, HEAD / 2),
            OWN,
            HPos::Right,
            17,
        )?;
        write(
            area,
            "a peer is better →",
            (x(1.0) + 12, HEAD / 2),
            PEER,
            HPos::Left,
            17,
        )?;
        for power in (-SPAN as i32..=SPAN as i32).step_by(1) {
            let at = x(2_f64.powi(power));
            line(
                area,
                (at, HEAD),
                (at, bottom),
                if power == 0 { INK } else { LINE },
                1,
            )?;
            let text = if power < 0 {
                format!("1/{}", 1 << -power)
            } else {
                format!("{}", 1 << power)
            };
            write(area, &text, (at, bottom + 12), SOFT, HPos::Center, 15)?;
        }
        for (row, (outcome, ratios)) in rows.iter().enumerate() {
            let middle = HEAD + height * row as i32 + height / 2;
            write(
                area,
                &outcome.name,
                (NAMES - 12, middle),
                INK,
                HPos::Right,
                16,
            )?;
            for (index, ratio) in ratios.iter().enumerate() {
                let color = if *ratio <= 1.0 { OWN } else { PEER };
                mark(area, index, (x(*ratio), middle), color)?;
            }
        }
        Ok(())
    })
}

/// The first metric of a scenario is a disc, the second a square, the third a triangle, further ones are rings.
fn mark(area: &Area, index: usize, at: (i32, i32), color: RGBColor) -> Result<()> {
    match index {
        0 => area.draw(&Circle::new(at, 6, color.filled())),
        1 => return fill(area, (at.0 - 5, at.1 - 5), (at.0 + 5, at.1 + 5), &color),
        2 => area.draw(&TriangleMarker::new(at, 7, color.filled())),
        _ => area.draw(&Circle::new(at, 5, color.stroke_width(2))),
    }
    .map_err(failed)
}

/// How many waits were so long, of each way.
pub(super) fn histogram(outcome: &Outcome) -> Result<String> {
    let ways: Vec<&Results> = outcome
        .ways
        .iter()
        .filter(|way| !way.histogram.is_empty())
        .collect();
    let bounds: Vec<u64> = ways
        .iter()
        .flat_map(|way| way.histogram.keys().copied())
        .collect();
    let (Some(first), Some(last)) = (bounds.iter().min(), bounds.iter().max()) else {
        return Ok(String::new());
    };
    // Bounds are powers of two.
    let (first, last) = (first.ilog2() as i32, last.ilog2() as i32);
    let panel = (WIDTH as i32 - 20) / ways.len() as i32;
    let (height, top) = (150, HEAD);
    svg(top + height + 26, |area| {
        for (index, way) in ways.iter().enumerate() {
            let left = 10 + panel * index as i32;
            let step = (panel - 20) / (last - first + 1);
            let all: u64 = way.histogram.values().sum();
            let title = format!("{}: {all} waits", way.name);
            write(
                area,
                &title,
                (left, top / 2),
                color_of(way.side),
                HPos::Left,
                17,
            )?;
            for (upper, count) in &way.histogram {
                let at = left + (upper.ilog2() as i32 - first) * step;
                let share = (*count as f64).log10() / (all.max(2) as f64).log10();
                let from = top + height - (share * f64::from(height - 14)) as i32 - 2;
                fill(
                    area,
                    (at + 1, from),
                    (at + step - 1, top + height),
                    &color_of(way.side).mix(0.55),
                )?;
                write(
                    area,
                    &count.to_string(),
                    (at + step / 2, from - 7),
                    SOFT,
                    HPos::Center,
                    10,
                )?;
            }
            line(
                area,
                (left, top + height),
                (left + panel - 20, top + height),
                INK,
                1,
            )?;
            for power in (first..=last).step_by(3) {
                let text = Unit::Seconds.show(2_f64.powi(power) / 1e9);
                write(
                    area,
                    &text,
                    (left + (power - first + 1) * step, top + height + 12),
                    SOFT,
                    HPos::Center,
                    11,
                )?;
            }
        }
        Ok(())
    })
}
