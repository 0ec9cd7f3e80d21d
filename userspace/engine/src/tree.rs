//! Who is whose child, in which session and process group: the order in which processes have to be made so that the kernel
//! itself brings this about.
//!
//! A session is inherited at fork and left only by setsid(2). So a child that is in its parent's present session is forked after the parent's
//! own setsid, one that is still in the session the parent was born into before it, and an orphan in a session of the job by a helper
//! forked from the session's leader, which then ends. Leaders that have ended are stood in for by ghosts with their ids, which end when
//! everybody is in place.

use std::collections::{BTreeMap, BTreeSet};

use images::proto::Process;
use images::proto::process::State;

use crate::Refusal;

/// One step. Numbers are pids in the job's namespace; those from [`HELPERS`] on stand for processes with any pid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A new child of whoever adopts the job's orphans.
    Spawn { pid: u32 },
    /// A new child of a process of the job.
    Fork {
        parent: u32,
        pid: u32,
        exit_signal: u32,
    },
    /// Leads a new session from now on.
    NewSession { pid: u32 },
    /// Joins, or with `group` its own pid founds, a process group.
    JoinGroup { pid: u32, group: u32 },
    /// Adopts orphaned descendants from now on.
    Adopt { pid: u32 },
    /// A helper or ghost ends; `reaped_by` waits for it (0: whoever adopts it).
    End { pid: u32, reaped_by: u32 },
}

/// First of the numbers that stand for processes with any pid.
pub(crate) const HELPERS: u32 = 1 << 30;

struct Planner<'a> {
    all: BTreeMap<u32, &'a Process>,
    /// Sessions and groups whose leader is gone.
    steps: Vec<Step>,
    made: BTreeSet<u32>,
    ghosts: Vec<u32>,
    helpers: u32,
    refusals: Vec<Refusal>,
}

/// All processes of a job, parents first (zombies that nobody in the job waits for left out).
pub(crate) fn plan(processes: &[Process]) -> Result<Vec<Step>, Vec<Refusal>> {
    let mut planner = Planner {
        all: processes
            .iter()
            .map(|process| (process.pid, process))
            .collect(),
        steps: Vec::new(),
        made: BTreeSet::new(),
        ghosts: Vec::new(),
        helpers: HELPERS,
        refusals: Vec::new(),
    };
    // Processes directly below the adopter that begin sessions come first: others may be forked from them.
    let (orphans, rest): (Vec<&Process>, Vec<&Process>) =
        processes.iter().partition(|p| p.ppid == 0);
    let (own, borrowed): (Vec<&Process>, Vec<&Process>) =
        orphans.iter().partition(|p| p.sid == 0 || p.sid == p.pid);
    for process in own {
        planner.steps.push(Step::Spawn { pid: process.pid });
        planner.made.insert(process.pid);
        planner.grow(process, 0);
    }
    for process in borrowed.into_iter().chain(rest) {
        if !planner.made.contains(&process.pid) {
            planner.orphan_in_session(process);
        }
    }
    planner.groups(processes);
    for ghost in std::mem::take(&mut planner.ghosts) {
        planner.steps.push(Step::End {
            pid: ghost,
            reaped_by: 0,
        });
    }
    if planner.refusals.is_empty() {
        Ok(planner.steps)
    } else {
        Err(planner.refusals)
    }
}

/// Whether a process may hold children at all.
fn alive(process: &Process) -> bool {
    process.state() != State::Zombie
}

impl Planner<'_> {
    /// `process` has just been made in session `born`: makes its children, its setsid in between.
    fn grow(&mut self, process: &Process, born: u32) {
        if process.child_subreaper {
            self.steps.push(Step::Adopt { pid: process.pid });
        }
        let children: Vec<&Process> = self
            .all
            .values()
            .copied()
            .filter(|c| c.ppid == process.pid)
            .collect();
        let leads = process.sid == process.pid;
        let now = if leads { process.pid } else { born };
        // A child that leads its own session may have been born into either.
        let (before, after): (Vec<&Process>, Vec<&Process>) = children
            .iter()
            .partition(|c| leads && self.birth(c) == Some(born) && born != now);
        for child in before {
            self.fork(process.pid, child, born);
        }
        if leads {
            self.steps.push(Step::NewSession { pid: process.pid });
        }
        for child in after {
            if self.birth(child).is_none_or(|birth| birth == now) {
                self.fork(process.pid, child, now);
            }
        }
    }

    /// The session a process must be born into; `None`: any, as it leads its own and has children in no other.
    fn birth(&self, process: &Process) -> Option<u32> {
        if process.sid != process.pid {
            return Some(process.sid);
        }
        let other = |child: &&&Process| {
            child.ppid == process.pid && child.sid != process.pid && child.sid != child.pid
        };
        self.all.values().find(other).map(|child| child.sid)
    }

    fn fork(&mut self, parent: u32, child: &Process, session: u32) {
        self.steps.push(Step::Fork {
            parent,
            pid: child.pid,
            exit_signal: child.exit_signal,
        });
        self.made.insert(child.pid);
        if alive(child) {
            self.grow(child, session);
        } else if child.sid == child.pid {
            self.steps.push(Step::NewSession { pid: child.pid });
        }
    }

    /// A process in a session of the job that its parent is not in: born of a helper of the session's leader, orphaned, and adopted.
    fn orphan_in_session(&mut self, process: &Process) {
        let adopter = self.all.get(&process.ppid);
        if self.made.contains(&process.pid)
            || adopter.is_some_and(|adopter| !adopter.child_subreaper)
        {
            self.refusals.push(Refusal {
                pid: process.pid,
                what: format!("its session {}", process.sid),
                why: "its parent was never in that session and cannot have forked it".to_owned(),
                advice:
                    "this order of sessions cannot be made again; start the process with setsid"
                        .to_owned(),
            });
            return;
        }
        let leader = process.sid;
        if !self.made.contains(&leader) {
            self.steps.push(Step::Spawn { pid: leader });
            self.steps.push(Step::NewSession { pid: leader });
            self.made.insert(leader);
            self.ghosts.push(leader);
        }
        if self.ghosts.contains(&leader) && process.ppid == 0 {
            // Orphaned when the ghost ends.
            self.fork(leader, process, leader);
            return;
        }
        let helper = self.helpers;
        self.helpers += 1;
        self.steps.push(Step::Fork {
            parent: leader,
            pid: helper,
            exit_signal: 0,
        });
        self.steps.push(Step::Fork {
            parent: helper,
            pid: process.pid,
            exit_signal: process.exit_signal,
        });
        self.made.insert(process.pid);
        self.steps.push(Step::End {
            pid: helper,
            reaped_by: leader,
        });
        if alive(process) {
            self.grow(process, leader);
        }
    }

    /// Process groups: leaders found theirs, the others join; where the leader is gone, a ghost of it is there meanwhile.
    fn groups(&mut self, processes: &[Process]) {
        let in_group = |p: &&Process| p.pgid != 0 && p.sid != p.pid;
        let mut founded = BTreeSet::new();
        for process in processes.iter().filter(|p| p.sid == p.pid) {
            founded.insert(process.pid);
        }
        founded.extend(self.ghosts.iter().copied());
        for process in processes
            .iter()
            .filter(in_group)
            .filter(|p| p.pgid == p.pid)
        {
            self.steps.push(Step::JoinGroup {
                pid: process.pid,
                group: process.pid,
            });
            founded.insert(process.pid);
        }
        for process in processes
            .iter()
            .filter(in_group)
            .filter(|p| p.pgid != p.pid)
        {
            if founded.insert(process.pgid) {
                self.steps.push(Step::Fork {
                    parent: process.pid,
                    pid: process.pgid,
                    exit_signal: 0,
                });
                self.steps.push(Step::JoinGroup {
                    pid: process.pgid,
                    group: process.pgid,
                });
                let members: Vec<u32> = processes
                    .iter()
                    .filter(|p| p.pgid == process.pgid)
                    .map(|p| p.pid)
                    .collect();
                for member in members {
                    self.steps.push(Step::JoinGroup {
                        pid: member,
                        group: process.pgid,
                    });
                }
                self.steps.push(Step::End {
                    pid: process.pgid,
                    reaped_by: process.pid,
                });
            } else if !self.steps.contains(&Step::JoinGroup {
                pid: process.pid,
                group: process.pgid,
            }) {
                self.steps.push(Step::JoinGroup {
                    pid: process.pid,
                    group: process.pgid,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, ppid: u32, pgid: u32, sid: u32) -> Process {
        Process {
            pid,
            ppid,
            pgid,
            sid,
            exit_signal: 17,
            ..Default::default()
        }
    }

    #[test]
    fn plain_children() {
        let steps = plan(&[
            process(10, 0, 0, 0),
            process(11, 10, 0, 0),
            process(12, 11, 12, 0),
        ])
        .unwrap();
        assert_eq!(
            steps,
            [
                Step::Spawn { pid: 10 },
                Step::Fork {
                    parent: 10,
                    pid: 11,
                    exit_signal: 17
                },
                Step::Fork {
                    parent: 11,
                    pid: 12,
                    exit_signal: 17
                },
                Step::JoinGroup { pid: 12, group: 12 },
            ]
        );
    }

    #[test]
    fn child_born_before_setsid() {
        // 11 leads a session; its child 12 is still in the old one, its child 13 in the new.
        let all = [
            process(10, 0, 0, 0),
            process(11, 10, 11, 11),
            process(12, 11, 0, 0),
            process(13, 11, 11, 11),
        ];
        let steps = plan(&all).unwrap();
        let at = |wanted: &Step| steps.iter().position(|step| step == wanted).unwrap();
        let fork = |pid| {
            at(&Step::Fork {
                parent: 11,
                pid,
                exit_signal: 17,
            })
        };
        let session = at(&Step::NewSession { pid: 11 });
        assert!(fork(12) < session && session < fork(13));
    }

    #[test]
    fn daemon_whose_session_leader_is_gone() {
        let steps = plan(&[process(10, 0, 0, 0), process(20, 0, 19, 19)]).unwrap();
        assert_eq!(
            steps[1..],
            [
                Step::Spawn { pid: 19 },
                Step::NewSession { pid: 19 },
                Step::Fork {
                    parent: 19,
                    pid: 20,
                    exit_signal: 17
                },
                Step::JoinGroup { pid: 20, group: 19 },
                Step::End {
                    pid: 19,
                    reaped_by: 0
                },
            ]
        );
    }

    #[test]
    fn group_whose_leader_is_gone() {
        let steps = plan(&[
            process(10, 0, 0, 0),
            process(12, 10, 11, 0),
            process(13, 10, 11, 0),
        ])
        .unwrap();
        let ghost = steps
            .iter()
            .position(|s| {
                *s == Step::Fork {
                    parent: 12,
                    pid: 11,
                    exit_signal: 0,
                }
            })
            .unwrap();
        assert_eq!(steps[ghost + 1], Step::JoinGroup { pid: 11, group: 11 });
        assert_eq!(
            steps.last(),
            Some(&Step::End {
                pid: 11,
                reaped_by: 12
            })
        );
        assert_eq!(
            steps
                .iter()
                .filter(|s| matches!(s, Step::JoinGroup { group: 11, .. }))
                .count(),
            3
        );
    }

    #[test]
    fn orphan_in_a_living_session() {
        let steps = plan(&[process(10, 0, 10, 10), process(12, 0, 10, 10)]).unwrap();
        assert_eq!(
            steps[2],
            Step::Fork {
                parent: 10,
                pid: HELPERS,
                exit_signal: 0
            }
        );
        assert_eq!(
            steps[3],
            Step::Fork {
                parent: HELPERS,
                pid: 12,
                exit_signal: 17
            }
        );
        assert_eq!(
            steps[4],
            Step::End {
                pid: HELPERS,
                reaped_by: 10
            }
        );
    }

    #[test]
    fn impossible_session_is_refused() {
        assert!(
            plan(&[
                process(10, 0, 10, 10),
                process(11, 0, 11, 11),
                process(12, 11, 10, 10)
            ])
            .is_err()
        );
    }
}
