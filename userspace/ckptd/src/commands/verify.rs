//! `ckptd verify`: is every byte still what was written?

use super::pick_all;
use crate::cli::Verify;
use crate::failure::{Exit, Failure};
use crate::output::{Style, count, plain, print, print_json, styled};
use images::Damage;
use serde::Serialize;
use std::process::ExitCode;

/// The result for one job.
#[derive(Serialize)]
struct Verdict {
    job: String,
    checkpoints: Vec<u64>,
    damage: Vec<Flaw>,
}

/// One thing that is wrong.
#[derive(Serialize)]
struct Flaw {
    checkpoint: u64,
    pid: Option<u32>,
    /// First address that is hit.
    start: Option<u64>,
    /// First address after those that are hit.
    end: Option<u64>,
    file: String,
    /// Bytes from the file's start.
    offset: u64,
    what: String,
    #[serde(skip)]
    text: String,
}

impl From<Damage> for Flaw {
    fn from(damage: Damage) -> Self {
        let text = damage.to_string();
        Self {
            checkpoint: damage.checkpoint,
            pid: damage.pid,
            start: damage.addresses.as_ref().map(|addresses| addresses.start),
            end: damage.addresses.as_ref().map(|addresses| addresses.end),
            file: damage.file.to_string_lossy().into_owned(),
            offset: damage.offset,
            what: damage.what,
            text,
        }
    }
}

/// Reads all of them and prints what is wrong; exit status 3 when anything is.
pub(crate) fn execute(args: &Verify) -> Result<ExitCode, Failure> {
    let mut verdicts = Vec::new();
    for job in pick_all(&args.store.path(), args.job.as_deref())? {
        let checkpoints = match args.at {
            Some(sequence) => vec![sequence],
            None => job.sequences()?,
        };
        if checkpoints.is_empty() && args.job.is_none() {
            continue;
        }
        let damage = job.verify(args.at)?.into_iter().map(Flaw::from).collect();
        verdicts.push(Verdict {
            job: job.name().to_owned(),
            checkpoints,
            damage,
        });
    }
    if args.output.json {
        print_json(&verdicts);
    } else {
        print(&text(&verdicts));
    }
    let whole = verdicts.iter().all(|verdict| verdict.damage.is_empty());
    Ok(if whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Exit::Image as u8)
    })
}

fn text(verdicts: &[Verdict]) -> String {
    if verdicts.is_empty() {
        return "there is no checkpoint to verify\n".to_owned();
    }
    let mut text = String::new();
    for verdict in verdicts {
        let checkpoints = count(
            verdict.checkpoints.len() as u64,
            "checkpoint",
            "checkpoints",
        );
        let found = match verdict.damage.len() {
            0 => styled(Style::Green, "whole"),
            many => styled(
                Style::Red,
                &format!("damaged in {}", count(many as u64, "place", "places")),
            ),
        };
        text += &format!("{}: {checkpoints}, {found}\n", plain(&verdict.job));
        for flaw in &verdict.damage {
            text += &format!("  {}\n", plain(&flaw.text));
        }
    }
    text
}
