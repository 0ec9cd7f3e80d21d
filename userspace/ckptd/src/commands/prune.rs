//! `ckptd prune`: deletes old checkpoints and what nobody needs any more.

use super::pick_all;
use crate::cli::Prune;
use crate::failure::Failure;
use crate::output::{count, plain, print, print_json, size};
use crate::upkeep::tidy;
use serde::Serialize;
use std::process::ExitCode;

/// What went, or would go, of one job.
#[derive(Serialize)]
struct Gone {
    job: String,
    dry_run: bool,
    checkpoints: Vec<u64>,
    segments: usize,
    temporaries: usize,
    /// Bytes freed.
    bytes: u64,
    /// Segments rewritten because most of them was not needed any more.
    rewritten: usize,
    /// Bytes freed by that, less those written.
    rewritten_bytes: u64,
    /// Checkpoints left alone because they cannot be read, and why.
    unreadable: Vec<(u64, String)>,
}

/// Deletes, and says what.
pub(crate) fn execute(args: &Prune) -> Result<ExitCode, Failure> {
    let mut all = Vec::new();
    for job in pick_all(&args.store.path(), args.job.as_deref())? {
        let keep = args.keep.into();
        let (pruned, compacted) = if args.dry_run {
            let would = images::Compacted {
                freed: job.compactable()?,
                ..Default::default()
            };
            (job.prune(&keep, true)?, would)
        } else {
            tidy(&job, &keep, &|| true)?
        };
        all.push(Gone {
            job: job.name().to_owned(),
            dry_run: args.dry_run,
            checkpoints: pruned.checkpoints,
            segments: pruned.segments,
            temporaries: pruned.temporaries,
            bytes: pruned.bytes,
            rewritten: compacted.segments,
            rewritten_bytes: compacted.freed.saturating_sub(compacted.written),
            unreadable: pruned.unreadable,
        });
    }
    if args.output.json {
        print_json(&all);
    } else {
        print(&all.iter().map(text).collect::<String>());
    }
    Ok(ExitCode::SUCCESS)
}

fn text(gone: &Gone) -> String {
    let verb = if gone.dry_run {
        "would delete"
    } else {
        "deleted"
    };
    let mut what = Vec::new();
    if !gone.checkpoints.is_empty() {
        let numbers: Vec<String> = gone.checkpoints.iter().map(u64::to_string).collect();
        let noun = if numbers.len() == 1 {
            "checkpoint"
        } else {
            "checkpoints"
        };
        what.push(format!("{noun} {}", numbers.join(", ")));
    }
    if gone.segments > 0 {
        what.push(count(gone.segments as u64, "segment", "segments"));
    }
    if gone.temporaries > 0 {
        what.push(count(
            gone.temporaries as u64,
            "unfinished file",
            "unfinished files",
        ));
    }
    let mut text = match what.as_slice() {
        [] if gone.rewritten_bytes > 0 => String::new(),
        [] => format!("{}: nothing to delete\n", plain(&gone.job)),
        _ => format!(
            "{}: {verb} {}, {} in all\n",
            plain(&gone.job),
            what.join(", "),
            size(gone.bytes)
        ),
    };
    if gone.rewritten_bytes > 0 {
        let what = if gone.dry_run {
            "rewriting segments would free".to_owned()
        } else {
            let segments = count(gone.rewritten as u64, "segment", "segments");
            format!("rewrote {segments}, which freed")
        };
        let bytes = size(gone.rewritten_bytes);
        text += &format!("{}: {what} {bytes}\n", plain(&gone.job));
    }
    for (sequence, why) in &gone.unreadable {
        text += &format!("  left alone: checkpoint {sequence}: {}\n", plain(why));
    }
    if !gone.unreadable.is_empty() {
        text += "  segments are kept as long as one of those may need them; delete its .ckpt file to let them go\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_went() {
        let mut gone = Gone {
            job: "heat".into(),
            dry_run: true,
            checkpoints: vec![1, 2],
            segments: 1,
            temporaries: 0,
            bytes: 2048,
            rewritten: 0,
            rewritten_bytes: 0,
            unreadable: vec![],
        };
        assert_eq!(
            text(&gone),
            "heat: would delete checkpoints 1, 2, 1 segment, 2.0 KiB in all\n"
        );
        (gone.checkpoints, gone.segments) = (vec![], 0);
        assert_eq!(text(&gone), "heat: nothing to delete\n");
        (gone.dry_run, gone.rewritten, gone.rewritten_bytes) = (false, 1, 4096);
        assert_eq!(
            text(&gone),
            "heat: rewrote 1 segment, which freed 4.0 KiB\n"
        );
    }
}
