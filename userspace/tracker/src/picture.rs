//! The live picture of a job: which processes it has, and what may have changed of each (`ebpf/job.bpf.c`).
//!
//! The kernel keeps it in a table; reading it delays nobody, and there is nothing to fall behind. A picture is a hint of where to look again:
//! whoever needs the truth asks the kernel at that moment.

use std::collections::HashMap;
use std::fmt;

use crate::iterator::Reader;
use crate::object::{self, Attached, Fitted, Kernel};
use crate::sys::Map;
use crate::{Error, picture::hooks::FUNCTIONS};

/// How it is found out what changes within a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hooks {
    /// The kernel's own functions tell, for the job's processes alone.
    Functions,
    /// Every system call of every process tells at its end, which costs each some 50 to 150 ns.
    Calls,
    /// Nobody tells: only threads and execs are known. Says why.
    None(String),
}

impl fmt::Display for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Functions => f.write_str("the kernel's functions tell what changes"),
            Self::Calls => f.write_str("system calls tell what changes"),
            Self::None(why) => write!(f, "what changes is found by looking: {why}"),
        }
    }
}

/// What may change of a process, as `enum change` of ebpf/records.h has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Threads that begin or end.
    Threads,
    /// Descriptors.
    Descriptors,
    /// Mappings.
    Mappings,
    /// What signals do.
    Signals,
    /// Interval timers and POSIX timers.
    Timers,
    /// Who it is.
    Credentials,
}

const CHANGES: usize = 6;
const MEMBER_SIZE: usize = 8 + 4 * CHANGES;
/// Processes that a picture holds unless told otherwise; each takes some 100 bytes of the kernel's memory.
pub const PROCESSES: u32 = 8192;
/// include/uapi/linux/bpf.h
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// A process of the job, as the picture has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Tells it from a later process with its pid: when it was seen first.
    pub since: u64,
    /// How often each kind of thing may have changed, by [`Change`]. It stays as it is where nobody tells.
    pub generations: [u32; CHANGES],
}

impl Member {
    /// How often something may have changed.
    pub fn generation(&self, of: Change) -> u32 {
        self.generations[of as usize]
    }
}

/// The picture of one job. Nothing of it stays in the kernel when it is dropped, or when our process ends.
#[derive(Debug)]
pub struct Picture {
    members: Map,
    missed: Map,
    hooks: Hooks,
    _attached: Vec<Attached>,
}

mod hooks {
    /// For which there are programs. Some kernels lack some; then the others tell.
    pub(super) const FUNCTIONS: [&str; 10] = [
        "fd_install",
        "filp_close",
        "vm_stat_account",
        "do_brk_flags",
        "do_sigaction",
        "__x64_sys_setitimer",
        "__x64_sys_timer_create",
        "__x64_sys_timer_settime",
        "__x64_sys_timer_delete",
        "commit_creds",
    ];
}

impl Picture {
    /// Begins to follow, with nobody in the picture yet. At most `processes` have room in it. `calls`: system calls tell what changes,
    /// where the kernel's functions may not.
    ///
    /// # Errors
    /// [`Error`]: the kernel or our rights do not allow it.
    pub fn begin(processes: u32, calls: bool) -> Result<Self, Error> {
        if !crate::in_first_namespace() {
            return Err(Error::Lacks {
                what: "pids that are the same for programs and for us (we are in a pid namespace)"
                    .to_owned(),
            });
        }
        let description = object::describe_kernel()?;
        let kernel = Kernel::new(&description, &[object::JOB])?;
        let made = |what: &str| Error::system(format!("making the table of {what}"));
        let members =
            Map::create(BPF_MAP_TYPE_HASH, MEMBER_SIZE, processes).map_err(made("a job"))?;
        let missed = Map::create(BPF_MAP_TYPE_ARRAY, 8, 1).map_err(made("what is missed"))?;
        let programs =
            kernel.fit_with(object::JOB, &[("members", &members), ("missed", &missed)])?;
        let mut attached = vec![
            // Ends first: what is entered is taken out again.
            programs.at_tracepoint("exited", "sched_process_exit")?,
            programs.at_tracepoint("executed", "sched_process_exec")?,
            programs.at_tracepoint("forked", "sched_process_fork")?,
        ];
        let hooks = choose(&programs, calls, &mut attached);
        Ok(Self {
            members,
            missed,
            hooks,
            _attached: attached,
        })
    }

    /// How it is found out what changes within a process.
    pub fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    /// Takes a process into the picture; its children follow by themselves from now on. `false`: there is no room.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn add(&self, pid: u32) -> Result<bool, Error> {
        let doing = || format!("adding process {pid} to the picture of its job");
        if self
            .members
            .get(pid)
            .map_err(Error::system(doing()))?
            .is_some()
        {
            return Ok(true);
        }
        let before = born(pid);
        if before.is_none() {
            return Ok(true);
        }
        match self.members.set(pid, &[0; MEMBER_SIZE]) {
            // One that has ended in between nobody takes out again, and a stranger with its pid would be taken for it.
            Ok(()) if born(pid) != before => {
                self.members.remove(pid).map_err(Error::system(doing()))?;
                Ok(true)
            }
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => Ok(false),
            Err(error) => Err(Error::system(doing())(error)),
        }
    }

    /// The processes in the picture, by pid. Those that have ended are not among them.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn processes(&self) -> Result<HashMap<u32, Member>, Error> {
        let mut all = HashMap::new();
        let read = self.members.each(|pid, value| {
            if let Some(member) = member(value) {
                all.insert(pid, member);
            }
        });
        read.map_err(Error::system("reading the picture of a job"))?;
        Ok(all)
    }

    /// How many processes had no room so far. They are the job's all the same, and have to be looked for.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn missed(&self) -> Result<u64, Error> {
        let count = self.missed.get(0);
        let count = count.map_err(Error::system("reading what the picture of a job lacks"))?;
        let bytes = count.and_then(|bytes| Some(*bytes.first_chunk()?));
        Ok(bytes.map_or(0, u64::from_ne_bytes))
    }
}

/// When a process was started, unless it has ended (proc_pid_stat(5), field 22).
fn born(pid: u32) -> Option<String> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let alive = !matches!(fields.next()?, "Z" | "X");
    alive.then(|| fields.nth(18).map(str::to_owned)).flatten()
}

/// `struct member` of ebpf/records.h.
fn member(value: &[u8]) -> Option<Member> {
    let mut reader = Reader::new(value);
    let since = reader.u64()?;
    let mut generations = [0; CHANGES];
    for generation in &mut generations {
        *generation = reader.u32()?;
    }
    Some(Member { since, generations })
}

/// Attaches what tells of changes within processes.
fn choose(programs: &Fitted<'_>, calls: bool, attached: &mut Vec<Attached>) -> Hooks {
    let mut refused = None;
    let before = attached.len();
    for function in FUNCTIONS {
        match programs.at_function(function) {
            Ok(program) => attached.push(program),
            Err(Error::Lacks { what }) => tracing::debug!("this kernel has no {what}"),
            // What is not allowed for one function is not for the next.
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let why = match refused {
        None if attached.len() > before => return Hooks::Functions,
        None => "this kernel has none of the functions that could tell".to_owned(),
        Some(error) => {
            attached.truncate(before);
            match &error {
                Error::System { source, .. } if source.raw_os_error() == Some(libc::EPERM) => {
                    "this kernel does not let programs run at its functions (lockdown)".to_owned()
                }
                _ => error.to_string(),
            }
        }
    };
    if !calls {
        return Hooks::None(why);
    }
    match programs.at_tracepoint("called", "sys_exit") {
        Ok(program) => {
            attached.push(program);
            Hooks::Calls
        }
        Err(error) => Hooks::None(format!("{why}; {error}")),
    }
}
