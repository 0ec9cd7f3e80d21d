//! Lazy restore: the job runs while its memory is still in the image, and a page server brings it in.
//!
//! Each process makes a userfaultfd, ckptd takes it out and registers the mappings whose pages can wait, and the userfaultfds
//! go into a vault: a socket that the job's processes hold too, so that threads wait for their pages, rather than read zeros, when
//! all of ckptd is killed.

mod image;

pub use image::Image;
pub(crate) use image::put_first;

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use images::proto::mapping::Kind;
use images::proto::{Mapping, Process, Snapshot, Thread};
use memory::HugePagePolicy;
use memory::serve::{Memory, Vault};
use memory::uffd::{self, feature, mode};
use remote::{Blob, Program, live, sys};

use crate::areas::has;
use crate::plan::Plan;
use crate::{RestoreError, procfs};

/// What the page server of a job that is being restored has to know.
pub struct LazyJob {
    /// Holds the userfaultfds.
    pub vault: Vault,
    /// In each process of `processes`, the descriptors with this number and the next are the vault's.
    pub descriptor: u32,
    /// Process ids as we see them, each with what is missing there.
    pub processes: Vec<(u32, Memory)>,
    /// Pages are to go in write-protected, and when all are in, writes are still watched: see [`crate::Incoming`].
    pub protect: bool,
}

/// Called as soon as pages have to be served, before the job runs.
pub type Serve<'a> = dyn Fn(LazyJob) -> Result<(), RestoreError> + 'a;

/// Whether this kernel, and we, can serve pages of others: what to ask of userfaultfd(2).
///
/// # Errors
/// Why not, for people.
pub fn can_be_lazy() -> Result<(), String> {
    features().map(drop)
}

fn features() -> Result<u64, String> {
    const NEEDED: u64 =
        feature::EVENT_FORK | feature::EVENT_REMAP | feature::EVENT_REMOVE | feature::EVENT_UNMAP;
    const WANTED: u64 = NEEDED
        | feature::THREAD_ID
        | feature::POISON
        | feature::WP_ASYNC
        | feature::WP_UNPOPULATED
        | feature::WP_HUGETLBFS_SHMEM;
    let has = uffd::features().map_err(|errno| match errno {
        nix::errno::Errno::EPERM => {
            "handling page faults of the kernel itself needs CAP_SYS_PTRACE".to_owned()
        }
        errno => format!("userfaultfd: {errno}"),
    })?;
    if has & NEEDED != NEEDED {
        return Err("this kernel's userfaultfd does not tell of forks and unmappings".to_owned());
    }
    Ok(has & WANTED)
}

/// How the job's userfaultfds are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    features: u64,
    /// The vault's first descriptor.
    pub(crate) descriptor: u32,
}

impl Setup {
    pub(crate) fn new(processes: &[&Process], ours: Range<u32>) -> Result<Self, String> {
        let used: BTreeSet<u32> = processes
            .iter()
            .flat_map(|process| process.descriptors.iter().map(|d| d.fd))
            .chain(ours)
            .collect();
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        // High, so that the job gets the numbers that it would get; not so high that its table of descriptors grows.
        let limit = limit.map_or(256, |(soft, _)| soft.min(1 << 20) as u32);
        let high = limit.min(1000);
        let free = |fd: &u32| !used.contains(fd) && !used.contains(&(fd + 1));
        let descriptor = (3..high - 1).rev().chain(high..limit - 1).find(free);
        Ok(Self {
            features: features()?,
            descriptor: descriptor.ok_or("the job uses all descriptors there can be")?,
        })
    }

    /// What to register mappings for.
    pub(crate) fn mode(&self, protect: bool) -> u64 {
        if protect {
            mode::MISSING | mode::WP
        } else {
            mode::MISSING
        }
    }

    /// Makes a userfaultfd: the result of the first call.
    pub(crate) fn make(&self) -> Program {
        let mut program = Program::new();
        let uffd = program.must(
            libc::SYS_userfaultfd,
            &[uffd::FLAGS.into()],
            "make a userfaultfd",
        );
        let api = program.words(&[uffd::API, self.features, 0]);
        let args = [
            remote::Arg::Result(uffd),
            uffd::UFFDIO_API.into(),
            api.into(),
        ];
        program.must(libc::SYS_ioctl, &args, "set it up");
        program
    }

    /// Makes the vault; its two ends are in the output.
    pub(crate) fn make_vault(&self) -> (Program, Blob) {
        let mut program = Program::new();
        let ends = program.output(8);
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        let args = [libc::AF_UNIX.into(), kind.into(), 0.into(), ends.into()];
        program.must(libc::SYS_socketpair, &args, "make a vault");
        (program, ends)
    }

    /// Takes over the vault of process `holder`.
    pub(crate) fn fetch_vault(&self, holder: u32) -> Program {
        let mut program = Program::new();
        let pidfd = program.must(
            libc::SYS_pidfd_open,
            &[holder.into(), 0.into()],
            "open the process that has the vault",
        );
        for end in [self.descriptor, self.descriptor + 1] {
            let args = [remote::Arg::Result(pidfd), end.into(), 0.into()];
            let got = program.must(libc::SYS_pidfd_getfd, &args, "take over the vault");
            self.place(&mut program, remote::Arg::Result(got), end);
        }
        program.must(libc::SYS_close, &[remote::Arg::Result(pidfd)], "close it");
        program
    }

    /// Gives an end of the vault its number.
    pub(crate) fn place(&self, program: &mut Program, fd: remote::Arg, number: u32) {
        let args = [fd, number.into(), libc::O_CLOEXEC.into()];
        program.must(libc::SYS_dup3, &args, "keep the vault");
        program.must(libc::SYS_close, &[fd], "close its first number");
    }
}

/// Whether the pages of a mapping can come later. Shared memory cannot: MADV_REMOVE empties it and MADV_DONTNEED does not, but
/// userfaultfd tells of both in the same way. Locked memory has to be there, and the kernel takes no other kinds. A process that seccomp(2)
/// confines may not make the calls by which it gives its userfaultfds back in the end.
pub(crate) fn can_wait(process: &Process, mapping: &Mapping) -> bool {
    let is_confined = |thread: &Thread| thread.strict || !thread.filters.is_empty();
    !process.threads.iter().any(is_confined)
        && mapping.kind() == Kind::Anonymous
        && mapping.huge_page_size == 0
        && !["lo", "dp"].iter().any(|flag| has(&mapping.vm_flags, flag))
}

/// Mappings up to so many bytes are filled at once: what every program needs first is in them, and a page that is waited for costs more.
const SMALL: u64 = 128 << 10;
/// Bytes of these, in one process.
const MOST_SMALL: u64 = 4 << 20;

/// The mappings of a process whose pages may come later, by their addresses.
pub(crate) fn later(process: &Process) -> BTreeSet<u64> {
    let mut small = 0;
    let waits = |mapping: &&Mapping| {
        let size = mapping.end.saturating_sub(mapping.start);
        let now = size <= SMALL && small + size <= MOST_SMALL;
        if now {
            small += size;
        }
        !now
    };
    let mappings = process.memory.iter().flat_map(|memory| &memory.mappings);
    let mappings = mappings.filter(|m| can_wait(process, m));
    mappings.filter(waits).map(|m| m.start).collect()
}

/// The mappings of a process whose pages come later.
pub(crate) fn waiting(plan: &Plan, number: u32, process: &Process) -> Option<Memory> {
    let memory = process.memory.as_ref()?;
    let content = plan.content.get(&memory.space)?;
    let later = later(process);
    let waits = |m: &&Mapping| later.contains(&m.start) && content.within(m);
    let mappings: Vec<_> = memory
        .mappings
        .iter()
        .filter(waits)
        .map(|mapping| (mapping.start..mapping.end, has(&mapping.vm_flags, "wf")))
        .collect();
    (!mappings.is_empty()).then_some(Memory {
        number,
        space: memory.space,
        mappings,
    })
}

/// Where the kernel would have given huge pages to a process whose memory came in page by page, by its space in the image.
#[must_use]
pub fn huge_pages(snapshot: &Snapshot) -> HashMap<u64, Vec<Range<u64>>> {
    let host = HugePagePolicy::of_host();
    let wanted = |mapping: &&Mapping| match host {
        HugePagePolicy::Always => !has(&mapping.vm_flags, "nh"),
        HugePagePolicy::Asked => has(&mapping.vm_flags, "hg"),
        HugePagePolicy::Never => false,
    };
    let processes = snapshot.processes.iter().filter(|p| p.thp_disabled == 0);
    processes
        .filter_map(|process| {
            let memory = process.memory.as_ref()?;
            let mappings = memory.mappings.iter().filter(|m| can_wait(process, m));
            let ranges = mappings.filter(wanted).map(|m| m.start..m.end);
            Some((memory.space, ranges.collect()))
        })
        .collect()
}

/// Has them again, in a process that may run.
pub fn collapse(pid: u32, ranges: &[Range<u64>]) {
    let Ok(pidfd) = sys::pidfd_open(pid as i32) else {
        return;
    };
    if let Err(error) = memory::collapse(pid, pidfd.as_fd(), ranges) {
        tracing::debug!("no huge pages: {error}");
    }
}

/// Our own duplicates of a job's vault, from a process that holds it.
///
/// # Errors
/// It holds none (any more), or we may not look.
pub fn find_vault(pid: u32, descriptor: u32) -> std::io::Result<Vault> {
    let pidfd = sys::pidfd_open(pid as i32)?;
    let receiver = sys::pidfd_getfd(&pidfd, descriptor)?;
    let sender = sys::pidfd_getfd(&pidfd, descriptor + 1)?;
    let kind = nix::sys::socket::getsockopt(&receiver, nix::sys::socket::sockopt::SockType)?;
    if kind != nix::sys::socket::SockType::SeqPacket {
        return Err(std::io::Error::other("it is something else by now"));
    }
    Ok(Vault::new(receiver, sender))
}

/// Closes the vault in every process that holds it, which stops each for a moment; a process that is stopped already would be seen
/// to run for a moment, so it comes last, when it has not been continued within a second. What cannot be closed (in a process that
/// ends, or is traced by others) stays, empty.
pub fn close_vault(vault: &Vault, descriptor: u32) {
    let link = |pid: u32, fd: u32| procfs::link(&format!("/proc/{pid}/fd/{fd}"));
    let ours = vault.receiver().as_raw_fd() as u32;
    let Ok(ours) = link(std::process::id(), ours) else {
        return;
    };
    let mut holders = procfs::numbered("/proc");
    let holds = |pid: u32| link(pid, descriptor).ok().as_ref() == Some(&ours);
    holders.retain(|&pid| pid != std::process::id() && holds(pid));
    let stopped = |pid: u32| procfs::Status::read(pid).is_ok_and(|status| status.state() == 'T');
    for turn in 0..=10 {
        holders.retain(|&pid| {
            if turn < 10 && stopped(pid) {
                return true;
            }
            let (first, last) = (u64::from(descriptor), u64::from(descriptor) + 1);
            let args = [first, last, 0, 0, 0, 0];
            let closed = live::borrow_call(pid as i32, libc::SYS_close_range, args);
            tracing::debug!("closing the vault in process {pid}: {closed:?}");
            false
        });
        if holders.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// The ends of a new vault, from the output of [`Setup::make_vault`].
pub(crate) fn ends(output: &[u8]) -> [u32; 2] {
    let end = |at: usize| {
        let bytes = output
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default())
    };
    [end(0), end(4)]
}

/// A userfaultfd that was taken out of a process, its mappings registered.
pub(crate) fn register(
    setup: &Setup,
    fd: OwnedFd,
    memory: &Memory,
    protect: bool,
) -> Result<uffd::Userfault, nix::errno::Errno> {
    let uffd = uffd::Userfault::new(fd);
    let mut rest = memory
        .mappings
        .iter()
        .map(|(range, _)| range.clone())
        .peekable();
    while let Some(mut range) = rest.next() {
        // Those that touch take one request.
        while let Some(next) = rest.next_if(|next| next.start == range.end) {
            range.end = next.end;
        }
        uffd.register(&range, setup.mode(protect))?;
    }
    Ok(uffd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::proto::AddressSpace;

    #[test]
    fn small_mappings_do_not_wait_unless_there_are_many() {
        let mapping = |nth: u64, size: u64| Mapping {
            start: nth << 30,
            end: (nth << 30) + size,
            ..Mapping::default()
        };
        let process = |mappings| Process {
            memory: Some(AddressSpace {
                mappings,
                ..AddressSpace::default()
            }),
            ..Process::default()
        };
        let few = [
            mapping(1, 4096),
            mapping(2, SMALL + 4096),
            mapping(3, SMALL),
        ];
        assert_eq!(later(&process(few.into())), BTreeSet::from([2 << 30]));
        let many = process((1..100).map(|nth| mapping(nth, SMALL)).collect());
        assert_eq!(later(&many).len() as u64, 99 - MOST_SMALL / SMALL);
    }
}
