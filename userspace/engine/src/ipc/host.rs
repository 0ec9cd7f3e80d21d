//! What this host has in the way of the job's objects.

use images::proto::{IpcObject, Snapshot};
pub(crate) use remote::ipc::Kind;

use super::list::list;
use super::list::{began, is_alive};
use super::{messages, name, semaphores};
use crate::Refusal;

/// Objects of this host that have ids of the job's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    pub(super) present: Vec<Present>,
    /// Ids can be chosen (CONFIG_CHECKPOINT_RESTORE).
    pub(super) chosen: bool,
    pub(super) boot: String,
}

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Present {
    pub(super) kind: Kind,
    pub(super) object: IpcObject,
    /// Bytes, or semaphores.
    pub(super) size: u64,
    /// Who has used it, and of them who is alive.
    pub(super) users: Vec<u32>,
    pub(super) alive: Vec<u32>,
    pub(super) attached: u64,
}

impl Host {
    /// None of what this host has is in the way.
    pub(crate) fn forget(&mut self) {
        self.present.clear();
    }

    pub(crate) fn probe(snapshot: &Snapshot) -> Self {
        let mut host = Self {
            chosen: std::path::Path::new("/proc/sys/kernel/shm_next_id").exists(),
            boot: crate::host::now().boot_id,
            ..Self::default()
        };
        let wanted: Vec<Wanted<'_>> = wanted(snapshot).collect();
        let taken = snapshot.host.as_ref().map_or(0, |host| host.taken_at);
        let own = |pid: u32| snapshot.processes.iter().any(|process| process.pid == pid);
        // A number of the job's may be somebody else's by now, who was started after the checkpoint.
        let alive = |pid: &u32| is_alive(*pid) && !(own(*pid) && began(*pid) > Some(taken));
        for kind in [Kind::Segment, Kind::Semaphores, Kind::Queue] {
            if !wanted.iter().any(|wanted| wanted.kind == kind) {
                continue;
            }
            for line in list(kind) {
                let object = line.object(kind);
                let conflicts = |w: &Wanted<'_>| w.kind == kind && conflict(w.object, &object);
                if !wanted.iter().any(conflicts) {
                    continue;
                }
                let (size, users) = match kind {
                    Kind::Segment => (line.number("size"), vec![line.number("cpid") as u32]),
                    Kind::Semaphores => semaphores::users(&line),
                    Kind::Queue => (0, messages::users(&line)),
                };
                host.present.push(Present {
                    kind,
                    object,
                    size,
                    alive: users
                        .iter()
                        .copied()
                        .filter(|pid| alive(pid) && line.is_by(*pid))
                        .collect(),
                    users,
                    attached: line.number("nattch"),
                });
            }
        }
        host
    }

    /// Whether an object that nobody had used is there still, or in use by now and so not the job's.
    pub(super) fn keeps(&self, wanted: &Wanted<'_>) -> bool {
        let same = |present: &Present| present.object.id == wanted.object.id;
        let idle = |present: &Present| present.users.is_empty() || !present.alive.is_empty();
        let mut all = self.in_the_way(wanted.kind, wanted.object);
        wanted.unused && all.any(|present| same(present) && idle(present))
    }

    /// What has to make room for an object of the job's.
    pub(super) fn in_the_way(
        &self,
        kind: Kind,
        object: &IpcObject,
    ) -> impl Iterator<Item = &Present> {
        let object = *object;
        self.present
            .iter()
            .filter(move |present| present.kind == kind && conflict(&object, &present.object))
    }

    /// Why an object of the job's cannot be made again here.
    fn check(&self, snapshot: &Snapshot, wanted: &Wanted<'_>) -> Option<Refusal> {
        let &Wanted {
            kind, object, size, ..
        } = wanted;
        let refusal = |why: String, advice: &str| {
            Some(Refusal {
                pid: snapshot.root,
                what: name(kind, object),
                why,
                advice: advice.to_owned(),
            })
        };
        if !self.chosen {
            let advice = "restore under a kernel that has it";
            let why = "this kernel lets nobody choose its id (CONFIG_CHECKPOINT_RESTORE)";
            return refusal(why.to_owned(), advice);
        }
        let same_boot = snapshot
            .host
            .as_ref()
            .is_some_and(|host| host.boot_id == self.boot);
        let pids: Vec<u32> = snapshot.processes.iter().map(|p| p.pid).collect();
        for present in self.in_the_way(kind, object) {
            let found = &present.object;
            if let Some(pid) = present.alive.first() {
                let why = format!("process {pid} uses one of that id or key now");
                return refusal(why, "end that process, or wait for its end");
            }
            if present.attached != 0 {
                let why = "processes of others are attached to one of that id or key now";
                return refusal(
                    why.to_owned(),
                    "`ipcs -mp` names them: end them, or wait for their end",
                );
            }
            // Ids count up: within one boot the same id is the same object.
            let known = same_boot
                || present
                    .users
                    .iter()
                    .all(|pid| *pid == 0 || pids.contains(pid));
            let same = (found.id, found.key, found.creator_uid, present.size)
                == (object.id, object.key, object.creator_uid, size);
            if !same || !known {
                let why = format!(
                    "the id or key has been taken by another, {} (key {:#x})",
                    found.id, found.key
                );
                let letter = match kind {
                    Kind::Segment => "m",
                    Kind::Semaphores => "s",
                    Kind::Queue => "q",
                };
                return refusal(
                    why,
                    &format!(
                        "remove that one if nobody needs it: ipcrm -{letter} {}",
                        found.id
                    ),
                );
            }
        }
        None
    }
}

/// Two objects that cannot be there at once.
pub(super) fn conflict(a: &IpcObject, b: &IpcObject) -> bool {
    a.id == b.id || (a.key != 0 && a.key == b.key)
}

/// An object of the job's.
pub(super) struct Wanted<'a> {
    pub(super) kind: Kind,
    pub(super) object: &'a IpcObject,
    /// Bytes, or semaphores.
    pub(super) size: u64,
    /// Nobody had used it, so that it may be somebody else's.
    pub(super) unused: bool,
}

pub(super) fn wanted(snapshot: &Snapshot) -> impl Iterator<Item = Wanted<'_>> {
    let segments = snapshot.shared.iter().filter_map(|shared| {
        Some(Wanted {
            kind: Kind::Segment,
            object: shared.segment.as_ref()?.object.as_ref()?,
            size: shared.size,
            unused: false,
        })
    });
    let sets = snapshot.semaphores.iter().filter_map(|set| {
        Some(Wanted {
            kind: Kind::Semaphores,
            object: set.object.as_ref()?,
            size: set.semaphores.len() as u64,
            unused: !set.operated && set.semaphores.iter().all(|s| (s.value, s.pid) == (0, 0)),
        })
    });
    let queues = snapshot.queues.iter().filter_map(|queue| {
        Some(Wanted {
            kind: Kind::Queue,
            object: queue.object.as_ref()?,
            size: 0,
            unused: queue.messages.is_empty() && queue.sender == 0,
        })
    });
    segments.chain(sets).chain(queues)
}

/// Why objects of the job's cannot be made again on this host.
pub(crate) fn check(snapshot: &Snapshot, host: &Host) -> Vec<Refusal> {
    wanted(snapshot)
        .filter(|wanted| !host.keeps(wanted))
        .filter_map(|wanted| host.check(snapshot, &wanted))
        .collect()
}

#[cfg(test)]
mod tests {
    use images::proto::Process;

    use super::*;

    #[test]
    fn what_is_in_the_way() {
        let object = IpcObject {
            id: 7,
            key: 0x1234,
            ..Default::default()
        };
        let present = |key: i32, users: &[u32], alive: &[u32]| Host {
            present: vec![Present {
                kind: Kind::Segment,
                object: IpcObject { key, ..object },
                size: 10,
                users: users.to_vec(),
                alive: alive.to_vec(),
                attached: 0,
            }],
            chosen: true,
            boot: "this".to_owned(),
        };
        let mut snapshot = Snapshot {
            host: Some(images::proto::Host {
                boot_id: "this".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let wanted = Wanted {
            kind: Kind::Segment,
            object: &object,
            size: 10,
            unused: false,
        };
        let refused = |host: &Host, snapshot: &Snapshot| host.check(snapshot, &wanted).is_some();
        assert!(!refused(&present(0x1234, &[99], &[]), &snapshot));
        assert!(refused(&present(0x1234, &[99], &[99]), &snapshot));
        assert!(refused(&present(0x99, &[99], &[]), &snapshot));
        snapshot.host = None;
        assert!(refused(&present(0x1234, &[99], &[]), &snapshot));
        snapshot.processes.push(Process {
            pid: 99,
            ..Default::default()
        });
        assert!(!refused(&present(0x1234, &[99], &[]), &snapshot));
    }
}
