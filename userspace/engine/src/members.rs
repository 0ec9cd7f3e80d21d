//! Which processes a job has, and which threads they have.

use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock};

use tracker::Tracker;

use crate::Scope;
use crate::procfs::{self, Stat};

/// The processes of a job at one moment, zombies included.
pub(crate) struct Members {
    /// Their pids, parents before their children.
    pub(crate) order: Vec<u32>,
    /// Threads that have not ended, where one look has told them all.
    threads: Option<HashMap<u32, Vec<u32>>>,
}

impl Members {
    /// As it is now.
    pub(crate) fn now(scope: Scope, tracker: Option<&Tracker>) -> Self {
        match tracker.map(Tracker::tasks) {
            Some(Ok(Some(tasks))) => return Self::among(scope, &tasks, &followed(tracker)),
            Some(Err(error)) => tracing::warn!("{error}; reading /proc instead"),
            Some(Ok(None)) | None => {}
        }
        Self {
            order: walk(scope, &followed(tracker), procfs::children),
            threads: None,
        }
    }

    fn among(scope: Scope, tasks: &[tracker::Task], followed: &[u32]) -> Self {
        let (mut children, mut threads) = (HashMap::new(), HashMap::new());
        for task in tasks {
            if task.tid == task.pid {
                let siblings: &mut Vec<(u32, u64, u32)> = children.entry(task.parent).or_default();
                siblings.push((task.parent_thread, task.born, task.pid));
            }
            let living: &mut Vec<u32> = threads.entry(task.pid).or_default();
            if !task.ended {
                living.push(task.tid);
            }
        }
        let followed: Vec<u32> = (followed.iter().copied())
            .filter(|pid| threads.contains_key(pid))
            .collect();
        let order = walk(scope, &followed, |pid| {
            // As the kernel lists them, and wait(2) finds them: pids begin anew.
            let mut siblings = children.remove(&pid).unwrap_or_default();
            siblings.sort_unstable();
            siblings.into_iter().map(|(.., pid)| pid).collect()
        });
        Self {
            order,
            threads: Some(threads),
        }
    }

    /// The threads of one of them; with those that have ended, where nobody tells them apart.
    pub(crate) fn threads(&self, pid: u32) -> Vec<u32> {
        match &self.threads {
            Some(all) => all.get(&pid).cloned().unwrap_or_default(),
            None => procfs::threads(pid),
        }
    }
}

/// Whom the kernel has seen being born into the job: among them may be orphans that somebody else has adopted.
fn followed(tracker: Option<&Tracker>) -> Vec<u32> {
    let picture = tracker.and_then(Tracker::picture);
    let members = picture.and_then(|picture| picture.processes().ok());
    let mut pids: Vec<u32> = members.into_iter().flatten().map(|(pid, _)| pid).collect();
    pids.sort_unstable();
    pids
}

/// All descendants that count, and of those who are followed the ones that descend from nobody else, each once.
fn walk(scope: Scope, followed: &[u32], mut children: impl FnMut(u32) -> Vec<u32>) -> Vec<u32> {
    let mut all = match scope {
        Scope::Tree { root } => vec![root],
        Scope::Supervised { reaper, .. } => {
            let ours = std::process::id();
            let apart = APART.read().unwrap_or_else(PoisonError::into_inner);
            let is_apart = |pid| apart.get(&pid).is_some_and(|&then| then == born(pid));
            let mut first = children(reaper);
            first.retain(|&pid| pid != ours && !is_apart(pid));
            first
        }
    };
    let mut known: std::collections::HashSet<u32> = all.iter().copied().collect();
    let (mut next, mut followed) = (0, followed.iter());
    loop {
        while next < all.len() {
            // One that was given to another parent meanwhile may come up twice.
            let new = children(all[next]);
            all.extend(new.into_iter().filter(|pid| known.insert(*pid)));
            next += 1;
        }
        match followed.find(|pid| known.insert(**pid)) {
            Some(orphan) => all.push(*orphan),
            None => return all,
        }
    }
}

/// Pids and start times of children of this process that are no part of its job.
static APART: RwLock<BTreeMap<u32, i64>> = RwLock::new(BTreeMap::new());

/// Starts a child of this process that helps it, and is no part of the job that it supervises; gives its pid.
///
/// # Errors
/// Those of `start`.
pub fn start_apart<E>(start: impl FnOnce() -> Result<u32, E>) -> Result<u32, E> {
    let mut apart = APART.write().unwrap_or_else(PoisonError::into_inner);
    let pid = start()?;
    apart.insert(pid, born(pid));
    Ok(pid)
}

/// When a process was started, in clock ticks since boot; it tells those apart that had the same pid.
fn born(pid: u32) -> i64 {
    Stat::read(pid).map_or(-1, |stat| stat.field(22))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(tid: u32, pid: u32, parent: u32) -> tracker::Task {
        tracker::Task {
            born: u64::from(if tid == 3 { 99 } else { tid }),
            tid,
            pid,
            parent,
            parent_thread: parent,
            ended: false,
        }
    }

    #[test]
    fn descendants_come_behind_their_parents() {
        // Pids have begun anew: 3 is the youngest.
        let tasks = [
            task(1, 1, 0),
            task(3, 3, 11),
            task(10, 10, 1),
            task(11, 11, 10),
            task(12, 11, 10),
            task(20, 20, 1),
            task(13, 13, 11),
        ];
        let of = |scope| Members::among(scope, &tasks, &[]);
        let tree = of(Scope::Tree { root: 10 });
        assert_eq!(tree.order, [10, 11, 13, 3]);
        assert_eq!(tree.threads(11), [11, 12]);
        let supervised = of(Scope::Supervised {
            root: 10,
            reaper: 1,
        });
        assert_eq!(supervised.order, [10, 20, 11, 13, 3]);
    }

    #[test]
    fn an_orphan_that_is_followed_belongs_to_it() {
        let tasks = [
            task(1, 1, 0),
            task(10, 10, 1),
            task(11, 11, 10),
            task(30, 30, 1),
            task(31, 31, 30),
        ];
        // 40 has ended.
        let members = Members::among(Scope::Tree { root: 10 }, &tasks, &[10, 11, 30, 40]);
        assert_eq!(members.order, [10, 11, 30, 31]);
    }

    #[test]
    fn who_has_ended_has_no_threads_and_is_there() {
        let zombie = tracker::Task {
            ended: true,
            ..task(11, 11, 10)
        };
        let members = Members::among(Scope::Tree { root: 10 }, &[task(10, 10, 1), zombie], &[]);
        assert_eq!(members.order, [10, 11]);
        assert!(members.threads(11).is_empty());
    }
}
