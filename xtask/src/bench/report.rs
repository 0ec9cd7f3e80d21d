//! What came out.

use super::job::Workload;
use anyhow::Result;
use serde::Serialize;
use serde_json::json;

/// One cycle of one tool.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    /// The checkpoint command from start to end, in seconds.
    pub(crate) checkpoint: f64,
    /// How long the job stood still, by its own clock, in seconds.
    pub(crate) stopped: f64,
    /// From the start of the restore command to the job's first own instruction, in seconds.
    pub(crate) restore: f64,
    /// Bytes of images.
    pub(crate) bytes: u64,
    /// The most memory the tool had, in bytes.
    pub(crate) peak: u64,
}

/// All cycles of one tool with one workload.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Entry {
    pub(crate) samples: Vec<Sample>,
    /// Why there are no more.
    pub(crate) failure: Option<String>,
}

/// A column: its title, how to get it from a sample, and how to show it.
type Column = (&'static str, fn(&Sample) -> f64, fn(f64) -> String);

const COLUMNS: [Column; 5] = [
    ("checkpoint", |sample| sample.checkpoint, milliseconds),
    ("stopped", |sample| sample.stopped, milliseconds),
    ("restore", |sample| sample.restore, milliseconds),
    ("image", |sample| sample.bytes as f64, mebibytes),
    ("peak memory", |sample| sample.peak as f64, mebibytes),
];

/// Columns in which the peer's time counts against the workload's target.
const COMPARED: [usize; 2] = [0, 2];

/// Results of each tool, in the order of their names, for each workload.
pub(crate) type Results = [(Workload, Vec<Entry>)];

pub(crate) fn print(tools: &[&str], results: &Results) {
    println!("median (smallest - largest); times in ms, sizes in MiB");
    print!("{:<16}{:<8}", "workload", "tool");
    COLUMNS.iter().for_each(|(title, ..)| print!("{title:>27}"));
    println!();
    for (workload, entries) in results {
        for (tool, entry) in tools.iter().zip(entries) {
            print!("{:<16}{tool:<8}", workload.name);
            if let Some(failure) = &entry.failure {
                println!("  failed: {failure}");
                continue;
            }
            for (_, value, show) in COLUMNS {
                let (median, low, high) = spread(entry, value);
                print!(
                    "{:>27}",
                    format!("{} ({} - {})", show(median), show(low), show(high))
                );
            }
            println!();
        }
    }
    if tools.len() == 2 {
        println!("\n{} against {}, medians:", tools[0], tools[1]);
        results
            .iter()
            .for_each(|(workload, entries)| compare(tools, workload, entries));
    }
}

fn compare(tools: &[&str], workload: &Workload, entries: &[Entry]) {
    let [own, peer] = entries else { return };
    if own.samples.is_empty() || peer.samples.is_empty() {
        return;
    }
    let mut remarks = Vec::new();
    for (index, (title, value, _)) in COLUMNS.iter().enumerate() {
        let ratio = spread(own, *value).0 / spread(peer, *value).0.max(f64::MIN_POSITIVE);
        let mut remark = format!("{title} {ratio:.2}");
        if ratio > 1.005 {
            remark += &format!(" ({} is better)", tools[1]);
        } else if COMPARED.contains(&index) && ratio > workload.target {
            remark += &format!(" (target {})", workload.target);
        }
        remarks.push(remark);
    }
    println!("  {:<16}{}", workload.name, remarks.join(", "));
}

pub(crate) fn json(tools: &[&str], results: &Results) -> Result<String> {
    let results: Vec<_> = results
        .iter()
        .map(|(workload, entries)| {
            let tools: serde_json::Map<_, _> = tools
                .iter()
                .zip(entries)
                .map(|(tool, entry)| ((*tool).into(), json!(entry)))
                .collect();
            json!({ "workload": workload.name, "tools": tools })
        })
        .collect();
    Ok(serde_json::to_string_pretty(&results)?)
}

/// Median, smallest and largest; NaN of nothing.
fn spread(entry: &Entry, value: fn(&Sample) -> f64) -> (f64, f64, f64) {
    let mut values: Vec<f64> = entry.samples.iter().map(value).collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    };
    let end = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
    (median, end(values.first()), end(values.last()))
}

fn milliseconds(seconds: f64) -> String {
    let ms = seconds * 1e3;
    if ms < 100.0 {
        format!("{ms:.1}")
    } else {
        format!("{ms:.0}")
    }
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1}", bytes / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let sample = |checkpoint| Sample {
            checkpoint,
            stopped: 0.0,
            restore: 0.0,
            bytes: 0,
            peak: 0,
        };
        let entry = |times: &[f64]| Entry {
            samples: times.iter().copied().map(sample).collect(),
            failure: None,
        };
        let time = |sample: &Sample| sample.checkpoint;
        assert_eq!(spread(&entry(&[3.0, 1.0, 2.0]), time), (2.0, 1.0, 3.0));
        assert_eq!(spread(&entry(&[4.0, 1.0, 2.0, 3.0]), time), (2.5, 1.0, 4.0));
        assert!(spread(&entry(&[]), time).0.is_nan());
    }
}
