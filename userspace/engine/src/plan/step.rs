//! The steps of a plan, and how they read.

use images::proto::{Regular, SharedMemory};
use remote::Program;

use crate::{ipc, tree};

/// One step of a plan.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// The tree of processes.
    Tree(tree::Step),
    /// System calls in one thread.
    Run {
        pid: u32,
        tid: u32,
        what: &'static str,
        program: Program,
    },
    /// A new thread.
    Thread { pid: u32, tid: u32 },
    /// A process goes to control groups of its own.
    Cgroups { pid: u32 },
    /// Filters of system calls do nothing in a process until it runs.
    Suspend { pid: u32 },
    /// All pages go to their places.
    Fill,
    /// A process ends as it had ended, and waits for its parent to notice.
    Zombie { pid: u32, wait_status: i32 },
    /// A descriptor of a process that has ended and been waited for.
    Dead { pid: u32, place: u32, flags: u32 },
    /// The content of a saved file is kept beside it if it has changed.
    KeepBeside { shared: SharedMemory },
    /// A file that has grown is cut back.
    CutBack { regular: Regular },
    /// An object that outlives processes has been made: from here on it is removed if the restore fails.
    Left { kind: ipc::Kind, id: u32 },
    /// A TCP connection to the outside, the open file with that id, goes on.
    GoOn { pid: u32, fd: u32, file: u32 },
    /// Everything runs.
    LetGo,
}

impl Step {
    pub(super) fn lines(&self, lines: &mut Vec<String>) {
        match self {
            Self::Tree(step) => lines.push(match step {
                tree::Step::Spawn { pid } => format!("make process {pid}"),
                tree::Step::Fork { parent, pid, .. } if *pid >= tree::HELPERS => {
                    format!("process {parent}: fork a helper")
                }
                tree::Step::Fork { parent, pid, .. } if *parent >= tree::HELPERS => {
                    format!("the helper: fork {pid}")
                }
                tree::Step::Fork { parent, pid, .. } => format!("process {parent}: fork {pid}"),
                tree::Step::NewSession { pid } => format!("process {pid}: lead a session"),
                tree::Step::JoinGroup { pid, group } => {
                    format!("process {pid}: join process group {group}")
                }
                tree::Step::Adopt { pid } => format!("process {pid}: adopt orphans"),
                tree::Step::End { pid, .. } if *pid >= tree::HELPERS => {
                    "the helper: end".to_owned()
                }
                tree::Step::End { pid, .. } => {
                    format!("process {pid}: end (it was only there for its id)")
                }
            }),
            Self::Run {
                pid,
                tid,
                what,
                program,
            } => {
                let who = if pid == tid {
                    format!("process {pid}")
                } else {
                    format!("thread {tid}")
                };
                lines.push(format!("{who}: {what}"));
                lines.extend(program.calls().iter().map(|call| format!("    {call}")));
            }
            Self::Thread { pid, tid } => lines.push(format!("process {pid}: start thread {tid}")),
            Self::Suspend { pid } => lines.push(format!(
                "process {pid}: suspend filters of system calls until it runs"
            )),
            Self::Fill => lines.push("write all pages to their places".to_owned()),
            Self::Zombie { pid, wait_status } => lines.push(format!(
                "process {pid}: end again (wait status {wait_status:#x})"
            )),
            Self::Dead { pid, .. } => lines.push(format!(
                "process {pid}: take a descriptor of a helper that ends"
            )),
            Self::CutBack { regular } => {
                lines.push(format!(
                    "cut {} back to {} bytes, keeping the rest beside it",
                    regular.path, regular.size
                ));
            }
            Self::KeepBeside { shared } => lines.push(format!(
                "keep what {} holds now beside it, if that has changed",
                shared.name
            )),
            Self::Cgroups { pid } => lines.push(format!("process {pid}: enter its control groups")),
            Self::GoOn { pid, fd, .. } => lines.push(format!(
                "process {pid}: let the connection of descriptor {fd} go on"
            )),
            Self::Left { .. } => {}
            Self::LetGo => lines.push("set all registers and let everything run".to_owned()),
        }
    }
}
