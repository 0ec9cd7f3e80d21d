//! Looking at a job that runs for what no checkpoint could take, so that its user hears of it at once and not at the first checkpoint.
//!
//! The rules are those of the capture. Those are left out that speak of a moment (a datagram that waits in a socket), and those that need
//! all of the job to stand still. Nobody is stopped.

use std::collections::{HashMap, HashSet};

use tracker::{Hooks, Member, Place, Tracker};

use crate::capture::{check, namespaces_of};
use crate::files::{Harmless, Table, outer::Outer};
use crate::members::Members;
use crate::procfs::Status;
use crate::{Refusal, Scope, areas, maps};

/// What is known of a job from earlier looks.
#[derive(Debug, Default)]
pub struct Lookout {
    harmless: Harmless,
    before: HashSet<(u32, String)>,
    /// Processes as they were then, where the kernel tells what changes in them.
    seen: HashMap<u32, Member>,
}

impl Lookout {
    /// Everything for which a checkpoint of the job would be refused, now and at the last look: what is gone by the next one has done no
    /// harm. `stdio_of` is that of a checkpoint's options.
    pub fn look(&mut self, scope: Scope, stdio_of: u32, tracker: Option<&Tracker>) -> Vec<Refusal> {
        let (Scope::Tree { root } | Scope::Supervised { root, .. }) = scope;
        let order = Members::now(scope, tracker).order;
        let status = |&pid: &u32| Some((pid, Status::read(pid).ok()?));
        let statuses: HashMap<u32, Status> = order.iter().filter_map(status).collect();
        let mut refusals = Vec::new();
        check(
            &order,
            &statuses,
            root,
            &|pid| Some(namespaces_of(statuses.get(&pid)?.speaker())),
            &mut refusals,
        );
        let picture = tracker.and_then(Tracker::picture);
        if let Some(picture) = picture {
            let added = order.iter().map(|pid| picture.add(*pid));
            for error in added.filter_map(Result::err) {
                tracing::debug!("{error}");
            }
        }
        // Before they are looked at: what changes meanwhile is seen the next time.
        let told = picture.filter(|picture| !matches!(picture.hooks(), Hooks::None(_)));
        let told = told.and_then(|picture| picture.processes().ok());
        let told = told.unwrap_or_default();
        let held: HashSet<u32> = self.before.iter().map(|(pid, _)| *pid).collect();
        let mut table = Table::new(
            Outer::of(stdio_of, order.contains(&stdio_of)),
            Default::default(),
        );
        self.harmless.retain(&order);
        for &pid in &order {
            let same = told
                .get(&pid)
                .is_some_and(|now| self.seen.get(&pid) == Some(now));
            if same && !held.contains(&pid) {
                continue;
            }
            table.judge(pid, tracker, &mut self.harmless, &mut refusals);
            if let Some(tracker) = tracker {
                mappings(pid, tracker, &mut refusals);
            }
        }
        let key = |refusal: &Refusal| (refusal.pid, refusal.what.clone());
        let now: HashSet<(u32, String)> = refusals.iter().map(key).collect();
        refusals.retain(|refusal| self.before.contains(&key(refusal)));
        self.before = now;
        self.seen = told;
        refusals
    }
}

/// Judges the mappings of a process, if one of them looks like it.
fn mappings(pid: u32, tracker: &Tracker, refusals: &mut Vec<Refusal>) {
    let Ok(all) = tracker.mappings(pid) else {
        return;
    };
    let mut judged: HashMap<u64, bool> = HashMap::new();
    let suspicious = |mapping: &tracker::Mapping| {
        *judged.entry(mapping.flags).or_insert_with(|| {
            let names = tracker.flag_names(mapping.flags);
            names.is_some_and(|names| maps::is_device(&names) || maps::is_watched(&names))
        })
    };
    // The kernel's own count as memory of a device too.
    let ordinary = |mapping: &&tracker::Mapping| !matches!(mapping.place, Place::Special(_));
    if !all.iter().filter(ordinary).any(suspicious) {
        return;
    }
    for mut area in areas::of(pid, Some(tracker), &mut HashMap::new()).unwrap_or_default() {
        // Write tracking of our own shows like this.
        area.flags = maps::without_ours(&area.flags);
        refusals.extend(maps::refused(pid, &area));
    }
}
