//! What prctl(2), arch_prctl(2), membarrier(2) and modify_ldt(2) have set otherwise than in a new process. None of it shows in /proc:
//! the threads are asked, unless eBPF says that there is nothing.

use images::proto::Attribute;
use images::proto::attribute::Kind;
use remote::{Arg, Blob, Outcome, Program};

use crate::Refusal;
use crate::areas::Area;

/// How one is asked for and set. A kernel that does not know it answers with an error, and then it cannot have been set.
struct Known {
    kind: Kind,
    what: &'static str,
    of_process: bool,
    nr: i64,
    /// What the call is asked with, before the place for the answer.
    get: u64,
    answer: Answer,
    /// What the value goes behind when it is set.
    set: &'static [u64],
    /// In a new process.
    usual: i64,
}

/// Where the answer is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Result,
    /// In an int that the second argument points to.
    Int,
    /// The result says how much was written there.
    Length,
}

/// include/uapi/linux/prctl.h, arch/x86/include/uapi/asm/prctl.h, include/uapi/linux/membarrier.h.
const KNOWN: [Known; 8] = [
    Known {
        kind: Kind::TimeStamps,
        what: "whether it may read the time stamp counter",
        of_process: false,
        nr: libc::SYS_prctl,
        get: 25,
        answer: Answer::Int,
        set: &[26],
        usual: 1,
    },
    Known {
        kind: Kind::Cpuid,
        what: "whether it may use the cpuid instruction",
        of_process: false,
        nr: libc::SYS_arch_prctl,
        get: 0x1011,
        answer: Answer::Result,
        set: &[0x1012],
        usual: 1,
    },
    Known {
        kind: Kind::MachineChecks,
        what: "when it is told of broken memory",
        of_process: false,
        nr: libc::SYS_prctl,
        get: 34,
        answer: Answer::Result,
        set: &[33, 1],
        usual: 2,
    },
    Known {
        kind: Kind::IoFlusher,
        what: "that it serves a block device",
        of_process: false,
        nr: libc::SYS_prctl,
        get: 58,
        answer: Answer::Result,
        set: &[57],
        usual: 0,
    },
    Known {
        kind: Kind::WriteExecute,
        what: "that it gets no memory that is both writable and executable",
        of_process: true,
        nr: libc::SYS_prctl,
        get: 66,
        answer: Answer::Result,
        set: &[65],
        usual: 0,
    },
    Known {
        kind: Kind::Mergeable,
        what: "that its memory may be merged",
        of_process: true,
        nr: libc::SYS_prctl,
        get: 68,
        answer: Answer::Result,
        set: &[67],
        usual: 0,
    },
    // Linux 6.3.
    Known {
        kind: Kind::Barriers,
        what: "which barriers it has registered for",
        of_process: true,
        nr: libc::SYS_membarrier,
        get: 1 << 9,
        answer: Answer::Result,
        set: &[],
        usual: 0,
    },
    Known {
        kind: Kind::Segments,
        what: "whether it has segments of its own",
        of_process: true,
        nr: libc::SYS_modify_ldt,
        get: 0,
        answer: Answer::Length,
        set: &[],
        usual: 0,
    },
];

/// Questions put to a thread, and where the answers are.
pub(crate) struct Questions(Vec<(&'static Known, usize, Blob)>);

/// Asks for what a thread has, or a process.
pub(crate) fn ask(program: &mut Program, of_process: bool) -> Questions {
    let known = KNOWN.iter().filter(|known| known.of_process == of_process);
    let ask = |known: &'static Known| {
        let place = program.output(8);
        let second: Arg = match known.answer {
            Answer::Result => 0.into(),
            Answer::Int | Answer::Length => place.into(),
        };
        let length = if known.answer == Answer::Length { 8 } else { 0 };
        let args = [known.get.into(), second, length.into(), 0.into(), 0.into()];
        let asked = program.try_call(known.nr, &args, format!("ask {}", known.what));
        (known, asked, place)
    };
    Questions(known.map(ask).collect())
}

impl Questions {
    /// What is not as usual.
    pub(crate) fn answers(self, outcome: &Outcome) -> Vec<Attribute> {
        let unusual = |(known, asked, place): (&Known, usize, Blob)| {
            let result = outcome.results[asked];
            let bytes = outcome.output(place).first_chunk();
            let value = match known.answer {
                Answer::Int => i64::from(bytes.map_or(0, |bytes| i32::from_ne_bytes(*bytes))),
                Answer::Result | Answer::Length => result,
            };
            (result >= 0 && value != known.usual).then(|| Attribute {
                kind: known.kind.into(),
                value: value as u64,
            })
        };
        self.0.into_iter().filter_map(unusual).collect()
    }
}

/// What a process has registered for: `MEMBARRIER_CMD_REGISTER_*`.
pub(crate) fn barriers(commands: u32) -> Option<Attribute> {
    (commands != 0).then(|| Attribute {
        kind: Kind::Barriers.into(),
        value: commands.into(),
    })
}

/// That new mappings are locked (mlockall(2)), as the flags of one that we have just made tell: only then is it locked.
pub(crate) fn locked(ours: &Area) -> Option<Attribute> {
    let on_fault = if ours.has("lf") { libc::MCL_ONFAULT } else { 0 };
    ours.has("lo").then(|| Attribute {
        kind: Kind::Locked.into(),
        value: (libc::MCL_FUTURE | on_fault) as u64,
    })
}

/// What of this cannot be made again.
pub(crate) fn check(pid: u32, attributes: &[Attribute]) -> Option<Refusal> {
    let segments = |attribute: &Attribute| attribute.kind() == Kind::Segments;
    attributes.iter().any(segments).then(|| Refusal {
        pid,
        what: "its segments".to_owned(),
        why: "it has made segments of its own for 16-bit or 32-bit code (modify_ldt(2)), which are not supported"
            .to_owned(),
        advice: "checkpoint a program that runs 64-bit code only".to_owned(),
    })
}

/// Sets them.
pub(crate) fn set(program: &mut Program, attributes: &[Attribute]) {
    for attribute in attributes {
        if attribute.kind() == Kind::Locked {
            let label = "lock what it maps from now on";
            program.must(libc::SYS_mlockall, &[attribute.value.into()], label);
            continue;
        }
        let Some(known) = KNOWN.iter().find(|known| known.kind == attribute.kind()) else {
            continue;
        };
        let mut call = |args: &[u64]| {
            let mut all = [Arg::from(0u64); 5];
            for (place, value) in all.iter_mut().zip(args) {
                *place = (*value).into();
            }
            program.must(known.nr, &all, format!("set {}", known.what));
        };
        match known.kind {
            Kind::Barriers => {
                let commands = (0..32).map(|bit| 1 << bit);
                commands
                    .filter(|command| attribute.value & command != 0)
                    .for_each(|command| call(&[command]));
            }
            Kind::Segments => {}
            _ => call(&[known.set, &[attribute.value]].concat()),
        }
    }
}
