//! The descriptors of a process while the programs that make them are written.

use remote::{Arg, Expect, Program};

/// A process's descriptor table while its programs are written: descriptors are given out lowest first, as the kernel does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers {
    used: std::collections::BTreeSet<u32>,
}

impl Numbers {
    pub(crate) fn new(used: impl IntoIterator<Item = u32>) -> Self {
        Self {
            used: used.into_iter().collect(),
        }
    }

    /// The descriptor the next call that makes one will give.
    pub(crate) fn allocate(&mut self) -> u32 {
        let mut lowest = 0;
        for &fd in &self.used {
            if fd != lowest {
                break;
            }
            lowest += 1;
        }
        self.used.insert(lowest);
        lowest
    }

    pub(crate) fn take(&mut self, fd: u32) {
        self.used.insert(fd);
    }

    pub(crate) fn release(&mut self, fd: u32) {
        self.used.remove(&fd);
    }
}

/// A program under way in one process, with its descriptor table.
pub(crate) struct Shell {
    pub(crate) program: Program,
    pub(crate) numbers: Numbers,
}

impl Shell {
    /// A call that gives a new descriptor.
    pub(crate) fn open(&mut self, nr: i64, args: &[Arg], label: impl Into<String>) -> u32 {
        let fd = self.numbers.allocate();
        self.program
            .call(nr, args, Expect::Exactly(u64::from(fd)), label);
        fd
    }

    pub(crate) fn open_path(&mut self, path: &str, flags: u32) -> u32 {
        let name = self.program.string(path);
        // Never become the controlling terminal's owner by accident.
        let flags = flags | (libc::O_NOCTTY | libc::O_CLOEXEC) as u32;
        let args = [libc::AT_FDCWD.into(), name.into(), flags.into(), 0.into()];
        self.open(libc::SYS_openat, &args, format!("open {path}"))
    }

    pub(crate) fn close(&mut self, fd: u32) {
        self.numbers.release(fd);
        self.program.must(
            libc::SYS_close,
            &[fd.into()],
            format!("close descriptor {fd}"),
        );
    }

    /// Moves a descriptor to another, free, number.
    pub(crate) fn rename(&mut self, from: u32, to: u32, close_on_exec: bool) {
        if from == to {
            let flag = u64::from(close_on_exec);
            self.program.must(
                libc::SYS_fcntl,
                &[from.into(), libc::F_SETFD.into(), flag.into()],
                "set close-on-exec",
            );
            return;
        }
        self.duplicate(from, to, close_on_exec);
        self.close(from);
    }

    /// Moves a descriptor to a number that is in use.
    pub(crate) fn rename_over(&mut self, from: u32, to: u32) {
        self.duplicate(from, to, true);
        self.close(from);
    }

    pub(crate) fn duplicate(&mut self, from: u32, to: u32, close_on_exec: bool) {
        let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
        let args = [from.into(), to.into(), flags.into()];
        self.program.call(
            libc::SYS_dup3,
            &args,
            Expect::Exactly(u64::from(to)),
            format!("make it descriptor {to}"),
        );
        self.numbers.take(to);
    }

    /// Fetches a descriptor of another process of the job.
    pub(crate) fn fetch(&mut self, pid: u32, fd: u32) -> u32 {
        let process = self.open(
            libc::SYS_pidfd_open,
            &[pid.into(), 0.into()],
            format!("open process {pid}"),
        );
        let args = [process.into(), fd.into(), 0.into()];
        let got = self.open(
            libc::SYS_pidfd_getfd,
            &args,
            format!("take descriptor {fd} of process {pid}"),
        );
        self.close(process);
        got
    }

    /// fcntl that must succeed.
    pub(crate) fn fcntl(&mut self, fd: u32, command: i32, argument: u64, label: &str) {
        self.program.must(
            libc::SYS_fcntl,
            &[fd.into(), command.into(), argument.into()],
            label,
        );
    }
}
