//! What a restore has to know of the machine and of itself: the only facts, beside the image, that a plan is made from.

use std::sync::LazyLock;

use images::proto::{self, Credentials, Rlimit, Scheduling};

use crate::Refusal;
use crate::areas;
use crate::files::{posix_queue, pty};
use crate::plan::rights;
use crate::procfs::Status;
use crate::{clock, cpu, identity, ipc, limits, namespaces, scheduling};
use remote::sys;

/// This host, as a new task of ckptd's finds it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    /// As recorded in snapshots.
    pub(crate) record: proto::Host,
    pub(crate) credentials: Credentials,
    pub(crate) limits: Vec<Rlimit>,
    pub(crate) scheduling: Scheduling,
    pub(crate) oom_score_adj: i32,
    /// core(5)
    pub(crate) coredump_filter: Option<u32>,
    /// Whether our own system calls are filtered.
    pub(crate) filtered: bool,
    /// Which of our standard descriptors is a terminal.
    pub(crate) terminal: Option<u32>,
    /// Lengths of the pieces of [vvar] and [vdso], in order of address, and whether each is the vdso.
    pub(crate) vdso_pieces: Vec<(u64, bool)>,
    /// PR_TIMER_CREATE_RESTORE_IDS works.
    pub(crate) timer_ids: bool,
    pub(crate) pid_max: u32,
    /// Ports from which connect(2) chooses, where it can be told to choose one of them (IP_LOCAL_PORT_RANGE, Linux 6.3).
    pub(crate) ports: Option<(u16, u16)>,
    /// Bytes in a new socket's send buffer.
    pub(crate) send_buffer: i32,
    /// Indices of pseudo terminals that others have, as far as the job needs to know.
    pub(crate) terminals: Vec<u32>,
    /// POSIX message queues that have names of the job's.
    pub(crate) queues: Vec<posix_queue::Present>,
    /// System V objects that are where the job had its own.
    pub(crate) ipc: ipc::Host,
    /// Namespaces that the job is to have besides those of its pids and mounts.
    pub(crate) own: Option<proto::Namespaces>,
    /// What is added to the clocks of this host for the job.
    pub(crate) clock: Option<clock::Offsets>,
}

const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

impl Host {
    pub(crate) fn probe(snapshot: &proto::Snapshot) -> Self {
        let status = Status::read(std::process::id()).unwrap_or_default();
        let text = |path: &str| sys::read_text(path).unwrap_or_default();
        let number = |path: &str| text(path).trim().parse().unwrap_or(0);
        let terminal = (0..3).find(|fd| {
            std::fs::read_link(format!("/proc/self/fd/{fd}"))
                .is_ok_and(|l| l.starts_with("/dev/pts") || l.starts_with("/dev/tty"))
        });
        let own = areas::own();
        let pieces = own
            .iter()
            .filter(|area| area.path == "[vdso]" || area.path.starts_with("[vvar"));
        let (major, minor) = release(&FIXED.kernel);
        let record = now();
        Self {
            credentials: identity::credentials(&status, sys::securebits()),
            filtered: status.number("Seccomp") != 0,
            limits: limits::parse(&text("/proc/self/limits")),
            scheduling: scheduling::capture(std::process::id()).unwrap_or_default(),
            oom_score_adj: text("/proc/self/oom_score_adj").trim().parse().unwrap_or(0),
            coredump_filter: limits::coredump_filter(&text("/proc/self/coredump_filter")),
            terminal,
            vdso_pieces: pieces
                .map(|area| (area.end - area.start, area.path == "[vdso]"))
                .collect(),
            timer_ids: (major, minor) >= (6, 15),
            ports: ports(&text("/proc/sys/net/ipv4/ip_local_port_range"))
                .filter(|_| (major, minor) >= (6, 3)),
            pid_max: number("/proc/sys/kernel/pid_max"),
            send_buffer: number("/proc/sys/net/core/wmem_default") as i32,
            terminals: pty::taken(&snapshot.files),
            queues: posix_queue::present(snapshot),
            ipc: ipc::Host::probe(snapshot),
            clock: snapshot
                .host
                .as_ref()
                .and_then(|job| clock::shift(job, &record)),
            record,
            own: None,
        }
    }

    /// As it is for a job in namespaces of its own.
    pub(crate) fn within(mut self, own: Option<proto::Namespaces>) -> Self {
        if let Some(own) = &own {
            self.credentials = namespaces::entered(&self.credentials, own);
            if own.ipc {
                self.ipc.forget();
            }
        }
        // In a network of its own nobody else has a port of the job's.
        let ports = self
            .ports
            .filter(|_| !own.as_ref().is_some_and(|own| own.network));
        Self { own, ports, ..self }
    }

    /// The job is in the user namespace that we are in.
    pub(crate) fn in_users_of_ours(&self) -> bool {
        self.own.as_ref().is_none_or(|own| own.user.is_none())
    }

    /// Whether we may suspend filters of system calls while a process is built.
    pub(crate) fn may_confine(&self) -> bool {
        self.credentials.effective >> CAP_SYS_ADMIN & 1 == 1 && !self.filtered
    }

    pub(crate) fn may_raise_limits(&self) -> bool {
        self.credentials.effective >> CAP_SYS_RESOURCE & 1 == 1 && self.in_users_of_ours()
    }
}

fn ports(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn release(text: &str) -> (u32, u32) {
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What of this machine stays as it is while we run. It takes a while to find out, so it is asked for before anybody has to wait for it.
static FIXED: LazyLock<proto::Host> = LazyLock::new(|| {
    let text = |path: &str| sys::read_text(path).unwrap_or_default().trim().to_owned();
    let vdso = |area: areas::Area| {
        let mut bytes = vec![0; (area.end - area.start) as usize];
        let me = std::process::id() as i32;
        sys::read_memory(me, area.start, &mut bytes).ok()?;
        Some(bytes)
    };
    let mut own = areas::own().into_iter();
    proto::Host {
        arch: std::env::consts::ARCH.to_owned(),
        kernel: text("/proc/sys/kernel/osrelease"),
        hostname: text("/proc/sys/kernel/hostname"),
        cpu_features: cpu::features(),
        xcr0: sys::xcr0(),
        page_size: 4096,
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        vdso: own
            .find(|area| area.path == "[vdso]")
            .and_then(vdso)
            .unwrap_or_default(),
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        ..Default::default()
    }
});

/// How many CPUs we may use.
pub(crate) fn cpus() -> u32 {
    FIXED.cpus
}

/// This machine, now, as recorded in a snapshot.
pub(crate) fn now() -> proto::Host {
    proto::Host {
        taken_at: sys::clock(libc::CLOCK_REALTIME),
        monotonic: sys::clock(libc::CLOCK_MONOTONIC),
        boottime: sys::clock(libc::CLOCK_BOOTTIME),
        ..FIXED.clone()
    }
}

/// The same for a job: by the clocks that its first process has, and with its users.
pub(crate) fn of_job(root: u32, processes: &[proto::Process]) -> proto::Host {
    let [monotonic, boottime] = clock::of(root);
    proto::Host {
        monotonic,
        boottime,
        users: identity::users(processes),
        ..now()
    }
}

/// What we could not restore of a job here and now.
pub(crate) fn missing_rights(snapshot: &proto::Snapshot) -> Vec<Refusal> {
    let status = Status::read(std::process::id()).unwrap_or_default();
    let credentials = identity::credentials(&status, sys::securebits());
    let scheduling = scheduling::capture(std::process::id()).unwrap_or_default();
    let adjustment = sys::read_text("/proc/self/oom_score_adj").unwrap_or_default();
    let ours = rights::Ours {
        credentials: &credentials,
        nice: scheduling.nice,
        oom_score_adj: adjustment.trim().parse().unwrap_or(0),
    };
    rights::missing(snapshot, ours)
}

#[cfg(test)]
mod tests {
    #[test]
    fn releases() {
        assert_eq!(super::release("6.18.44-fc-v595"), (6, 18));
        assert_eq!(super::release("6.1.0-50-cloud-amd64"), (6, 1));
    }
}
