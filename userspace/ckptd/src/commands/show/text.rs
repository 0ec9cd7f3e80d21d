//! A checkpoint in a form that a person understands.

use super::model::{Checkpoint, Mapping, Process};
use crate::output::{
    Align, Style, Table, command_line, count, duration, moment, plain, size, styled,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// All of it; every mapping too, or a summary of them.
pub(crate) fn render(checkpoint: &Checkpoint, every_mapping: bool) -> String {
    let mut text = heading(checkpoint);
    text += &tree(checkpoint);
    for process in &checkpoint.processes {
        text += &details(process, every_mapping);
    }
    text
}

fn heading(checkpoint: &Checkpoint) -> String {
    let seconds = |seconds: f64| duration(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let title = format!(
        "{}, checkpoint {}",
        plain(&checkpoint.job),
        checkpoint.sequence
    );
    let mut text = styled(Style::Bold, &title) + "\n";
    let mut line = |name: &str, value: String| text += &format!("  {name:9}{value}\n");
    line("command", plain(&command_line(&checkpoint.command)));
    line(
        "taken",
        format!(
            "{} on {} (Linux {}, {}, {}) by ckptd {}",
            moment(checkpoint.taken_at),
            plain(&checkpoint.host),
            plain(&checkpoint.kernel),
            plain(&checkpoint.arch),
            count(checkpoint.cpus.into(), "CPU", "CPUs"),
            plain(&checkpoint.version),
        ),
    );
    line(
        "size",
        format!(
            "{} on disk for {} of memory, compression {}",
            size(checkpoint.bytes),
            size(checkpoint.saved),
            plain(&checkpoint.compression)
        ),
    );
    let shared = checkpoint.bytes.saturating_sub(checkpoint.own_bytes);
    let base = match checkpoint.base {
        0 => String::new(),
        base => format!(", based on checkpoint {base}"),
    };
    line(
        "of these",
        format!(
            "{} its own, {} shared with other checkpoints; {} written for it{base}",
            size(checkpoint.own_bytes),
            size(shared),
            size(checkpoint.written_bytes),
        ),
    );
    line(
        "stopped",
        format!(
            "{} of {}",
            seconds(checkpoint.stopped_seconds),
            seconds(checkpoint.total_seconds)
        ),
    );
    if !checkpoint.phases.is_empty() {
        let phases = checkpoint
            .phases
            .iter()
            .map(|phase| format!("{} {}", plain(&phase.name), seconds(phase.seconds)));
        line("phases", phases.collect::<Vec<_>>().join(", "));
    }
    text
}

fn tree(checkpoint: &Checkpoint) -> String {
    let mut table = Table::new(&[
        ("PID", Align::Right),
        ("GROUP", Align::Right),
        ("SESSION", Align::Right),
        ("STATE", Align::Left),
        ("THREADS", Align::Right),
        ("MAPPED", Align::Right),
        ("SAVED", Align::Right),
        ("FDS", Align::Right),
        ("PROCESS", Align::Left),
    ]);
    let outer = |id: u32| {
        if id == 0 {
            "outer".to_owned()
        } else {
            id.to_string()
        }
    };
    for (prefix, process) in branches(&checkpoint.processes) {
        let root = if process.pid == checkpoint.root {
            "  (the job's root)"
        } else {
            ""
        };
        table.row(vec![
            process.pid.to_string(),
            outer(process.pgid),
            outer(process.sid),
            process.state.to_owned(),
            process.threads.len().to_string(),
            size(process.mapped),
            size(process.saved),
            process.descriptors.len().to_string(),
            format!("{prefix}{}{root}", plain(&process.name)),
        ]);
    }
    format!("\n{}", table.render(""))
}

/// Every process with the lines that lead to it from its parent.
fn branches(processes: &[Process]) -> Vec<(String, &Process)> {
    let mut children: BTreeMap<u32, Vec<&Process>> = BTreeMap::new();
    for process in processes {
        let known = processes
            .iter()
            .any(|other| other.pid == process.ppid && other.pid != process.pid);
        children
            .entry(if known { process.ppid } else { 0 })
            .or_default()
            .push(process);
    }
    // Depth first, with a stack of its own: an image may nest as deep as it likes. An image whose processes are
    // each other's parents shows only those that hang together with the top.
    let mut lines = Vec::new();
    let mut stack: Vec<(String, String, &Process)> = Vec::new();
    let push = |stack: &mut Vec<(String, String, _)>, below: &str, pid: u32| {
        let own = children.get(&pid).map_or(&[][..], Vec::as_slice);
        for (i, child) in own.iter().enumerate().rev() {
            let last = i + 1 == own.len();
            let (here, next) = match (pid, last) {
                (0, _) => ("", ""),
                (_, true) => ("└─ ", "   "),
                (_, false) => ("├─ ", "│  "),
            };
            stack.push((format!("{below}{here}"), format!("{below}{next}"), *child));
        }
    };
    push(&mut stack, "", 0);
    while let Some((prefix, below, process)) = stack.pop() {
        lines.push((prefix, process));
        if process.pid != 0 {
            push(&mut stack, &below, process.pid);
        }
    }
    lines
}

fn details(process: &Process, every_mapping: bool) -> String {
    let title = format!("process {} {}", process.pid, plain(&process.name));
    let mut text = format!("\n{}\n", styled(Style::Bold, &title));
    if process.state == "zombie" {
        return text + "  has ended; its parent has not waited for it yet\n";
    }
    text += &format!("  program     {}\n", plain(&process.exe));
    text += &format!("  directory   {}\n", plain(&process.cwd));
    text += &format!("  user        uid {}, gid {}\n", process.uid, process.gid);
    if process.threads.len() > 1 {
        let threads = process
            .threads
            .iter()
            .map(|thread| format!("{} {}", thread.tid, plain(&thread.name)));
        text += &format!("  threads     {}\n", shortened(threads.collect(), 8));
    }
    if every_mapping {
        text += "  mappings\n";
        text += &mappings(&process.mappings);
    } else {
        text += &format!("  mappings    {}\n", process.mappings.len());
        text += &summary(&process.mappings);
    }
    text += &format!("  descriptors {}\n", process.descriptors.len());
    if !process.descriptors.is_empty() {
        text += &descriptors(process);
    }
    text
}

fn shortened(mut items: Vec<String>, most: usize) -> String {
    let more = items.len().saturating_sub(most);
    if more > 0 {
        items.truncate(most);
        items.push(format!("and {more} more"));
    }
    items.join(", ")
}

/// Mappings of a kind together: how many, how large, how much of them is saved.
fn summary(mappings: &[Mapping]) -> String {
    let mut kinds: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for mapping in mappings {
        let sum = kinds.entry(mapping.kind).or_default();
        sum.0 += 1;
        sum.1 += mapping.end.saturating_sub(mapping.start);
        sum.2 += mapping.saved;
    }
    let mut table = Table::new(&[
        ("KIND", Align::Left),
        ("COUNT", Align::Right),
        ("MAPPED", Align::Right),
        ("SAVED", Align::Right),
    ]);
    for (kind, (number, mapped, saved)) in kinds {
        table.row(vec![
            kind.to_owned(),
            number.to_string(),
            size(mapped),
            size(saved),
        ]);
    }
    table.render("    ")
}

fn mappings(mappings: &[Mapping]) -> String {
    let mut table = Table::new(&[
        ("ADDRESSES", Align::Left),
        ("PROT", Align::Left),
        ("MAPPED", Align::Right),
        ("SAVED", Align::Right),
        ("KIND", Align::Left),
        ("WHAT", Align::Left),
    ]);
    for mapping in mappings {
        table.row(vec![
            format!("{:x}-{:x}", mapping.start, mapping.end),
            mapping.protection.clone(),
            size(mapping.end.saturating_sub(mapping.start)),
            size(mapping.saved),
            mapping.kind.to_owned(),
            plain(&mapping.what),
        ]);
    }
    table.render("    ")
}

fn descriptors(process: &Process) -> String {
    let mut table = Table::new(&[
        ("FD", Align::Right),
        ("KIND", Align::Left),
        ("OPEN FOR", Align::Left),
        ("WHAT", Align::Left),
    ]);
    for descriptor in &process.descriptors {
        let mut what = plain(&descriptor.what);
        if !descriptor.shared_with.is_empty() {
            what += &format!(
                ", shared with {}",
                shortened(descriptor.shared_with.clone(), 4)
            );
        }
        table.row(vec![
            descriptor.fd.to_string(),
            descriptor.kind.to_owned(),
            descriptor.access.clone(),
            what,
        ]);
    }
    table.render("    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, ppid: u32) -> Process {
        Process {
            pid,
            ppid,
            pgid: 0,
            sid: 0,
            state: "running",
            name: format!("p{pid}"),
            uid: 0,
            gid: 0,
            cwd: "/".into(),
            exe: "/bin/p".into(),
            threads: vec![],
            mapped: 0,
            saved: 0,
            mappings: vec![],
            descriptors: vec![],
        }
    }

    #[test]
    fn the_tree_is_drawn_depth_first() {
        let processes = [
            process(1, 0),
            process(2, 1),
            process(3, 1),
            process(4, 2),
            process(5, 9),
        ];
        let drawn: Vec<String> = branches(&processes)
            .iter()
            .map(|(prefix, process)| format!("{prefix}{}", process.pid))
            .collect();
        assert_eq!(drawn, ["1", "├─ 2", "│  └─ 4", "└─ 3", "5"]);
    }

    #[test]
    fn a_circle_of_parents_ends() {
        let processes = [process(1, 2), process(2, 1), process(0, 0)];
        assert_eq!(branches(&processes).len(), 1);
    }
}
