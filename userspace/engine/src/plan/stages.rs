//! The steps while they are written: stage by stage, a program for each process that has something to do in it.

use std::collections::BTreeMap;

use images::proto::Process;
use remote::Program;

use super::step::Step;
use crate::files::{Numbers, Shell};

/// The steps so far, and the descriptor table that each process has after them.
pub(crate) struct Stages<'a> {
    /// Those that are alive.
    pub(crate) processes: Vec<&'a Process>,
    numbers: BTreeMap<u32, Numbers>,
    steps: Vec<Step>,
}

impl<'a> Stages<'a> {
    /// Behind `steps`, by which everybody has been forked with only the outer standard descriptors, from `outer` on.
    pub(super) fn new(processes: Vec<&'a Process>, outer: u32, steps: Vec<Step>) -> Self {
        let table = || Numbers::new(outer..outer + 3);
        Self {
            numbers: processes.iter().map(|p| (p.pid, table())).collect(),
            processes,
            steps,
        }
    }

    /// A stage: what `write` says for each process runs there; a process for which it says nothing has no step.
    pub(crate) fn stage(
        &mut self,
        what: &'static str,
        mut write: impl FnMut(&mut Shell, &Process),
    ) {
        for process in &self.processes {
            let numbers = self.numbers.remove(&process.pid).unwrap_or_default();
            let mut shell = Shell {
                program: Program::new(),
                numbers,
            };
            write(&mut shell, process);
            self.numbers.insert(process.pid, shell.numbers);
            if !shell.program.is_empty() {
                self.steps.push(Step::Run {
                    pid: process.pid,
                    tid: process.pid,
                    what,
                    program: shell.program,
                });
            }
        }
    }

    /// Steps that are not the same for all processes.
    pub(crate) fn extend(&mut self, steps: impl IntoIterator<Item = Step>) {
        self.steps.extend(steps);
    }

    pub(super) fn finish(self) -> Vec<Step> {
        self.steps
    }
}
