//! What the program found at every page against what the model says.

use super::op::{Step, What, ZONES};
use super::page::{Content, Found, show_state, state};
use super::world::{Page, World};

/// Differences shown in full.
const SHOWN: usize = 12;

/// Every page at which a process found something else than it should, the first few in full; none when all is right.
pub(super) fn compare(
    world: &World,
    script: &[Step],
    process: usize,
    found: &[Found],
) -> Option<String> {
    let mut text = String::new();
    let mut count = 0;
    let zeros = Content::default().hash();
    let mut found = found.iter();
    for (zone, info) in ZONES.iter().enumerate() {
        for (number, page) in world.processes[process].zones[zone].iter().enumerate() {
            let Some(got) = found.next() else {
                return Some(format!("process {process}: its dump is too short\n"));
            };
            let Some(expected) = difference(world, page.as_ref(), *got, zeros) else {
                continue;
            };
            count += 1;
            if count <= SHOWN {
                text += &format!(
                    "process {process}, page {number} of {}: expected {expected}; got {got}\n",
                    info.name
                );
                text += &history(script, process, zone, number);
            }
        }
    }
    (count > 0).then(|| format!("{text}{count} pages of process {process} are wrong\n"))
}

/// What was expected, if it was not found.
fn difference(world: &World, page: Option<&Page>, got: Found, zeros: u64) -> Option<String> {
    let Some(page) = page else {
        return (got.state != 0).then(|| show_state(0));
    };
    let set = |is: bool, bit| if is { bit } else { 0 };
    let bits = state::MAPPED
        | u64::from(page.protection)
        | set(!page.is_private(), state::SHARED)
        | set(page.guard, state::SEGV);
    let content = world.content(page);
    let right = got.state == bits
        && (got.without_content() || got.hash == content.hash() || page.freed && got.hash == zeros);
    let or = if page.freed { " or zeros" } else { "" };
    (!right).then(|| format!("{}, {content}{or}", show_state(bits)))
}

/// The last steps that had to do with a page.
fn history(script: &[Step], process: usize, zone: usize, page: usize) -> String {
    let concerns = |step: &Step| match step.what {
        What::Remap { to, count, .. } => {
            let there = step.area.zone == zone && (to..to + count).contains(&page);
            there || step.area.has(zone, page)
        }
        What::Fork(child) => child == process || step.actor == process,
        What::Break(_) => zone == super::op::HEAP,
        What::Exec => true,
        _ => step.area.has(zone, page),
    };
    let mut lines: Vec<String> = script
        .iter()
        .enumerate()
        .filter(|(_, step)| concerns(step))
        .map(|(number, step)| format!("    step {number}: {step}\n"))
        .collect();
    lines.drain(..lines.len().saturating_sub(8));
    lines.concat()
}
