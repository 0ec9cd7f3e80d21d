//! What the kernel undoes on System V semaphores when a process ends (SEM_UNDO of semop(2)). Nobody but eBPF can read it; it is made again by
//! doing what it undoes.

use images::proto::{Process, SemaphoreSet, SemaphoreUndo, Snapshot};
use remote::sys::{self, Share};
use tracker::Tracker;

use super::Job;
use crate::Refusal;
use crate::files::Shell;
use crate::plan::Stages;

/// A kernel thread, which never has anything to undo.
const KTHREADD: i32 = 2;
/// include/uapi/linux/sem.h
const SEM_UNDO: i16 = 0x1000;
/// The highest value of a semaphore.
const SEMVMX: i32 = 32767;

/// Notes with each set what is undone on it.
pub(super) fn capture(
    job: &Job<'_>,
    tracker: Option<&Tracker>,
    sets: &mut [SemaphoreSet],
    refusals: &mut Vec<Refusal>,
) {
    let mut lists: Vec<u64> = Vec::new();
    let mut members: Vec<(u32, u32)> = job
        .members
        .iter()
        .map(|(&pid, &inner)| (pid, inner))
        .collect();
    members.sort_unstable();
    for (pid, inner) in members {
        // A task that has a list has threads, or has used SEM_UNDO.
        let same = sys::compare(pid as i32, KTHREADD, Share::SemaphoreUndo, 0, 0);
        if same.is_ok_and(|order| order == std::cmp::Ordering::Equal) {
            continue;
        }
        if let Err(why) = one(pid, inner, tracker, &mut lists, sets) {
            refusals.push(Refusal {
                pid,
                what: "its adjustments to System V semaphores".to_owned(),
                why,
                advice: "checkpoint with --bpf, or use semaphores without SEM_UNDO and threads, or POSIX ones (sem_open)"
                    .to_owned(),
            });
        }
    }
    for set in sets.iter() {
        let high = |(nth, value): (usize, i32)| value.max(most(set, nth)) > SEMVMX;
        if before(set).into_iter().enumerate().any(high) {
            refusals.push(Refusal {
                pid: job.root,
                what: "its adjustments to System V semaphores".to_owned(),
                why: "doing again what would be undone takes a semaphore beyond its highest value"
                    .to_owned(),
                advice: "use smaller values with SEM_UNDO".to_owned(),
            });
        }
    }
}

fn one(
    pid: u32,
    inner: u32,
    tracker: Option<&Tracker>,
    lists: &mut Vec<u64>,
    sets: &mut [SemaphoreSet],
) -> Result<(), String> {
    let unread = "it has threads, or has used SEM_UNDO, and what would be undone when it ends cannot be read without eBPF";
    let tracker = tracker.ok_or(unread)?;
    let undos = tracker
        .undo(pid)
        .map_err(|error| format!("{unread}: {error}"))?;
    let Some(list) = undos.first().map(|undo| undo.list) else {
        return Ok(());
    };
    if undos.iter().any(|undo| undo.list != list) || lists.contains(&list) {
        return Err("its threads have used SEM_UNDO each for itself, or it shares what will be undone with another process".to_owned());
    }
    lists.push(list);
    let tid = undos[0].tid;
    for undo in undos.into_iter().filter(|undo| undo.tid == tid) {
        let is = |set: &&mut SemaphoreSet| set.object.is_some_and(|object| object.id == undo.set);
        let set = sets.iter_mut().find(is);
        let count = set.as_ref().map_or(0, |set| set.semaphores.len());
        if count > tracker::SEMAPHORES {
            return Err(format!(
                "what would be undone on the {count} semaphores of set {} cannot be read",
                undo.set
            ));
        }
        let adjustments: Vec<i32> = undo
            .adjustments
            .into_iter()
            .map(i32::from)
            .take(count)
            .collect();
        match set {
            None => {
                return Err(format!(
                    "something would be undone on set {}, which is not the job's",
                    undo.set
                ));
            }
            Some(set) if adjustments.iter().any(|by| *by != 0) => set.undo.push(SemaphoreUndo {
                pid: inner,
                adjustments,
            }),
            Some(_) => {}
        }
    }
    Ok(())
}

/// What is undone on one semaphore, by process.
fn of(set: &SemaphoreSet, nth: usize) -> impl Iterator<Item = i32> {
    set.undo
        .iter()
        .map(move |undo| undo.adjustments.get(nth).copied().unwrap_or(0))
}

/// The value that a semaphore had before all that is undone was done; others may have brought it below zero meanwhile.
fn without(set: &SemaphoreSet, nth: usize) -> i32 {
    set.semaphores[nth].value as i32 + of(set, nth).sum::<i32>()
}

/// The values to begin with: whatever would be undone is done after that.
pub(super) fn before(set: &SemaphoreSet) -> Vec<i32> {
    let all = 0..set.semaphores.len();
    all.map(|nth| without(set, nth).max(0)).collect()
}

/// The highest value on the way: what adds to it comes first.
fn most(set: &SemaphoreSet, nth: usize) -> i32 {
    let added: i32 = of(set, nth).filter(|by| *by < 0).map(|by| -by).sum();
    without(set, nth).max(0) + added
}

/// Does again what is undone in the end, in the process that did: first what adds, so that nothing has to wait.
pub(super) fn rebuild(stages: &mut Stages<'_>, snapshot: &Snapshot) {
    let first = stages.processes.first().map_or(0, |process| process.pid);
    for adds in [true, false] {
        stages.stage("do what would be undone", |shell, process| {
            for set in &snapshot.semaphores {
                let own = set.undo.iter().filter(|undo| undo.pid == process.pid);
                for (nth, by) in own.flat_map(|undo| undo.adjustments.iter().enumerate()) {
                    if (*by < 0) == adds && *by != 0 {
                        operate(shell, set, &[(nth, -*by, SEM_UNDO)]);
                    }
                }
                // What others have taken of that, for good.
                let all = (0..set.semaphores.len()).filter(|_| !adds && process.pid == first);
                for nth in all.filter(|nth| without(set, *nth) < 0 && !set.undo.is_empty()) {
                    operate(shell, set, &[(nth, without(set, nth), 0)]);
                }
            }
        });
    }
}

/// As `semaphores::sign`; setting a value would make the kernel forget what is to be undone.
pub(super) fn sign(shell: &mut Shell, process: &Process, set: &SemaphoreSet) {
    for (nth, semaphore) in set.semaphores.iter().enumerate() {
        if semaphore.pid == process.pid {
            let up_and_down = if semaphore.value as i32 == SEMVMX {
                -1
            } else {
                1
            };
            operate(shell, set, &[(nth, up_and_down, 0), (nth, -up_and_down, 0)]);
        }
    }
}

/// semop(2): number, what to add, flags.
fn operate(shell: &mut Shell, set: &SemaphoreSet, operations: &[(usize, i32, i16)]) {
    let Some(object) = &set.object else { return };
    let bytes = |&(nth, by, flags): &(usize, i32, i16)| {
        let flags = flags | libc::IPC_NOWAIT as i16;
        [
            (nth as u16).to_ne_bytes(),
            (by as i16).to_ne_bytes(),
            flags.to_ne_bytes(),
        ]
        .concat()
    };
    let blob: Vec<u8> = operations.iter().flat_map(bytes).collect();
    let blob = shell.program.bytes(blob);
    let args = [object.id.into(), blob.into(), operations.len().into()];
    let label = format!("change semaphores of set {}", object.id);
    shell.program.must(libc::SYS_semop, &args, label);
}

#[cfg(test)]
mod tests {
    use images::proto::Semaphore;

    use super::*;

    fn set(value: u32, undo: &[i32]) -> SemaphoreSet {
        let undo = undo.iter().map(|by| SemaphoreUndo {
            pid: 1,
            adjustments: vec![*by],
        });
        SemaphoreSet {
            semaphores: vec![Semaphore { value, pid: 0 }],
            undo: undo.collect(),
            ..Default::default()
        }
    }

    #[test]
    fn values_to_begin_with() {
        // One has taken a lock; one has added what another took for good; both at once.
        assert_eq!(before(&set(0, &[1])), [1]);
        assert_eq!(
            (before(&set(0, &[-1])), without(&set(0, &[-1]), 0)),
            (vec![0], -1)
        );
        assert_eq!(
            (before(&set(2, &[3, -4])), most(&set(2, &[3, -4]), 0)),
            (vec![1], 5)
        );
    }
}
