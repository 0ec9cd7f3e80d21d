//! `ckptd list`: the jobs of a store and their checkpoints.

use super::pick_all;
use crate::cli::List;
use crate::failure::Failure;
use crate::lazy::Progress;
use crate::output::{
    Align, Style, Table, command_line, moment, plain, print, print_json, size, styled,
};
use crate::registry::{Registry, State};
use crate::supervisor::Watched;
use images::{Job, Store};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

/// A job, in the store or running or both.
#[derive(Serialize)]
struct Entry {
    name: String,
    running: bool,
    /// The root's pid, while it runs.
    pid: Option<u32>,
    command: Vec<String>,
    /// How far it is, while memory of a lazily restored job is missing.
    memory: Option<Progress>,
    /// What its supervisor knows of it, while it runs.
    watched: Option<Watched>,
    checkpoints: Vec<Row>,
}

/// A checkpoint.
#[derive(Serialize)]
struct Row {
    sequence: u64,
    /// Nanoseconds since the epoch.
    taken_at: Option<u64>,
    processes: Option<usize>,
    /// Bytes on disk that it needs.
    bytes: Option<u64>,
    /// Those of them that no other checkpoint needs.
    own_bytes: Option<u64>,
    /// Why it cannot be read.
    damage: Option<String>,
}

/// Prints them.
pub(crate) fn execute(args: &List) -> Result<ExitCode, Failure> {
    let dir = args.store.path();
    let running: Vec<State> = Registry::open()
        .and_then(|registry| registry.jobs())
        .unwrap_or_default()
        .into_iter()
        .filter(|state| state.dir == dir)
        .collect();
    // A job that runs but was never checkpointed has no store yet.
    let jobs = if running.is_empty() || Store::open(&dir).is_ok() {
        pick_all(&dir, None)?
    } else {
        Vec::new()
    };
    let mut entries = jobs
        .iter()
        .map(|job| entry(job, &running))
        .collect::<Result<Vec<_>, _>>()?;
    for state in &running {
        if !jobs.iter().any(|job| job.name() == state.name) {
            entries.push(Entry {
                name: state.name.clone(),
                running: true,
                pid: state.root.map(|root| root.pid),
                command: state.command.clone(),
                memory: None,
                watched: Watched::read(&state.entry),
                checkpoints: Vec::new(),
            });
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    if args.output.json {
        print_json(&entries);
    } else {
        print(&text(&entries, &dir));
    }
    Ok(ExitCode::SUCCESS)
}

fn entry(job: &Job, running: &[State]) -> Result<Entry, Failure> {
    let state = running.iter().find(|state| state.name == job.name());
    let mut command = state.map(|state| state.command.clone()).unwrap_or_default();
    let mut checkpoints = Vec::new();
    let usage = job.usage()?;
    for sequence in job.sequences()? {
        let usage = usage.iter().find(|usage| usage.sequence == sequence);
        let row = match job.checkpoint(Some(sequence)) {
            Ok(checkpoint) => {
                let snapshot = checkpoint.snapshot();
                if state.is_none() {
                    command.clone_from(&snapshot.command);
                }
                Row {
                    sequence,
                    taken_at: Some(checkpoint.manifest().created_at),
                    processes: Some(snapshot.processes.len()),
                    bytes: Some(checkpoint.bytes()),
                    own_bytes: usage.map(|usage| usage.own),
                    damage: None,
                }
            }
            Err(error) => Row {
                sequence,
                taken_at: None,
                processes: None,
                bytes: None,
                own_bytes: None,
                damage: Some(error.to_string()),
            },
        };
        checkpoints.push(row);
    }
    let pid = state.and_then(|state| state.root).map(|root| root.pid);
    Ok(Entry {
        name: job.name().to_owned(),
        running: state.is_some(),
        pid,
        command,
        memory: state.and_then(|state| Progress::read(&state.entry)),
        watched: state.and_then(|state| Watched::read(&state.entry)),
        checkpoints,
    })
}

fn text(entries: &[Entry], dir: &Path) -> String {
    if entries.is_empty() {
        return format!("there is no job in {}\n", dir.display());
    }
    let mut text = String::new();
    for entry in entries {
        let state = match entry.pid {
            Some(pid) => styled(Style::Green, &format!("running, process {pid}")),
            None if entry.running => styled(Style::Green, "being started"),
            None => styled(Style::Dim, "not running"),
        };
        let name = styled(Style::Bold, &plain(&entry.name));
        text += &format!(
            "{name}  {state}  {}\n",
            plain(&command_line(&entry.command))
        );
        if let Some(memory) = &entry.memory {
            text += &format!("  {}\n", memory.summary());
        }
        if let Some(watched) = &entry.watched {
            for obstacle in &watched.obstacles {
                let line = format!("cannot be checkpointed: {}", obstacle.summary());
                text += &format!("  {}\n", styled(Style::Yellow, &plain(&line)));
            }
            if let Some(missed) = watched.missed() {
                text += &format!("  {missed}\n");
            }
        }
        if entry.checkpoints.is_empty() {
            text += "  no checkpoint yet\n";
            continue;
        }
        let mut table = Table::new(&[
            ("SEQ", Align::Right),
            ("TAKEN", Align::Left),
            ("PROCESSES", Align::Right),
            ("SIZE", Align::Right),
            ("OWN", Align::Right),
            ("", Align::Left),
        ]);
        for row in &entry.checkpoints {
            table.row(vec![
                row.sequence.to_string(),
                row.taken_at.map(moment).unwrap_or_default(),
                row.processes
                    .map(|count| count.to_string())
                    .unwrap_or_default(),
                row.bytes.map(size).unwrap_or_default(),
                row.own_bytes.map(size).unwrap_or_default(),
                row.damage.as_deref().map(plain).unwrap_or_default(),
            ]);
        }
        text += &table.render("  ");
    }
    text
}
