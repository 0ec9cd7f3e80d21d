//! Whether this host can restore a snapshot, and whether the snapshot makes sense.

use std::collections::BTreeSet;

use images::PAGE_SIZE;
use images::proto::mapping::Kind;
use images::proto::open_file::Kind as FileKind;
use images::proto::process::State;
use images::proto::{Mapping, Process, Regular, Snapshot};

use super::rights;
use crate::files::{Network, datagram, inet, object, posix_queue, regular, unix};
use crate::host::Host;
use crate::{
    FilesPolicy, Refusal, TcpPolicy, cgroup, clock, cpu, identity, ipc, limits, seccomp, tree,
};

pub(super) fn alive(process: &&Process) -> bool {
    process.state() != State::Zombie
}

/// Every reason why this host cannot restore the snapshot, or the files to be cut back.
pub(super) fn check(
    snapshot: &Snapshot,
    host: &Host,
    (policy, tcp): (FilesPolicy, TcpPolicy),
) -> Result<Vec<Regular>, Vec<Refusal>> {
    let root = snapshot.root;
    let mut refusals = check_host(snapshot, host);
    refusals.extend(check_shape(snapshot));
    let objects = snapshot.shared.iter();
    refusals.extend(objects.filter_map(|shared| object::check(shared, root)));
    let own = host.own.as_ref().is_some_and(|own| own.network);
    let network = Network { tcp, own };
    for check in [unix::rebuild::check, inet::check, datagram::check] {
        let files = snapshot.files.iter();
        refusals.extend(files.filter_map(|file| check(file, network, root)));
    }
    let queue = |file| posix_queue::check(file, &host.queues, root);
    refusals.extend(snapshot.files.iter().filter_map(queue));
    refusals.extend(ipc::check(snapshot, &host.ipc));
    refusals.extend(cgroup::check(snapshot));
    refusals.extend(identity::check(snapshot));
    refusals.extend(clock::check(host.clock, root));
    let ours = rights::Ours {
        credentials: &host.credentials,
        nice: host.scheduling.nice,
        oom_score_adj: host.oom_score_adj,
    };
    refusals.extend(rights::missing(snapshot, ours));
    let cut = check_files(snapshot, policy, &mut refusals);
    if refusals.is_empty() {
        Ok(cut)
    } else {
        Err(refusals)
    }
}

pub(super) fn refusal(pid: u32, what: &str, why: &str, advice: &str) -> Refusal {
    Refusal {
        pid,
        what: what.to_owned(),
        why: why.to_owned(),
        advice: advice.to_owned(),
    }
}

fn check_host(snapshot: &Snapshot, host: &Host) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let job = snapshot.host.clone().unwrap_or_default();
    if job.arch != host.record.arch {
        let why = format!(
            "it was taken on {}, this host is {}",
            job.arch, host.record.arch
        );
        refusals.push(refusal(
            snapshot.root,
            "its machine code",
            &why,
            "restore on a host of that architecture",
        ));
    }
    let missing = cpu::missing(&job, &host.record);
    if !missing.is_empty() {
        let why = format!("this CPU lacks {}", missing.join(", "));
        let advice = format!("restore on a host with a CPU like that of {}", job.hostname);
        refusals.push(refusal(
            snapshot.root,
            "the CPU features it was started with",
            &why,
            &advice,
        ));
    }
    for process in &snapshot.processes {
        if seccomp::confines(process) && !host.may_confine() {
            refusals.push(refusal(
                process.pid,
                "its seccomp filter",
                "it takes CAP_SYS_ADMIN, and not being filtered oneself, to make it again",
                "restore as root, outside of a sandbox",
            ));
        }
        for limit in &process.limits {
            let ours = host
                .limits
                .iter()
                .find(|ours| ours.resource == limit.resource);
            if ours.is_some_and(|ours| limit.hard > ours.hard) && !host.may_raise_limits() {
                let why = format!(
                    "its hard limit ({}) is above ours, and we may not raise it",
                    limit.hard
                );
                let what = limits::name(limit.resource);
                refusals.push(refusal(
                    process.pid,
                    what,
                    &why,
                    "raise the limit (ulimit -H) before restoring, or grant CAP_SYS_RESOURCE",
                ));
            }
        }
    }
    refusals
}

/// The end of a thread sends the children that it has made their parent-death signals. The leader of a restored process makes all of its
/// children, and if it had ended, ends last.
pub(super) fn check_ended(snapshot: &Snapshot) -> Vec<Refusal> {
    let ended = snapshot.processes.iter().filter(|process| {
        let leader = process.threads.first();
        leader.is_some_and(|leader| leader.ended.is_some())
    });
    let ended: BTreeSet<u32> = ended.map(|process| process.pid).collect();
    let told = snapshot.processes.iter().filter(|process| {
        let mut threads = process.threads.iter();
        ended.contains(&process.ppid) && threads.any(|thread| thread.parent_death_signal != 0)
    });
    let refuse = |process: &Process| {
        refusal(
            process.pid,
            "its parent-death signal",
            "the main thread of its parent has ended while others run on",
            "let the main thread wait for the others",
        )
    };
    told.map(refuse).collect()
}

/// What no image of ours says. Addresses and descriptors are used as they are, so they are looked at first.
fn check_shape(snapshot: &Snapshot) -> Vec<Refusal> {
    let mut bad = Vec::new();
    let mut say = |pid: u32, what: &str| {
        bad.push(refusal(
            pid,
            what,
            "the image contradicts itself",
            "take another checkpoint (`ckptd list`)",
        ));
    };
    let mut pids = BTreeSet::new();
    for process in &snapshot.processes {
        let pid = process.pid;
        let ids = process.threads.iter().map(|t| t.tid);
        if pid == 0 || pid >= tree::HELPERS || process.threads.first().is_none_or(|t| t.tid != pid)
        {
            say(pid, "its threads");
        }
        if ids.filter(|id| !pids.insert(*id)).count() > 0 {
            say(pid, "its ids");
        }
        if process.ppid != 0 && !pids.contains(&process.ppid) {
            say(pid, "its parent");
        }
        if !alive(&process) {
            continue;
        }
        let Some(memory) = &process.memory else {
            say(pid, "its memory");
            continue;
        };
        let page = PAGE_SIZE as u64;
        let bounds = memory.mappings.iter().all(|m| {
            m.start < m.end
                && m.end <= 1 << 47
                && m.start.is_multiple_of(page)
                && m.end.is_multiple_of(page)
        });
        let apart = memory
            .mappings
            .windows(2)
            .all(|pair| pair[0].end <= pair[1].start);
        if !bounds || !apart || memory.layout.is_none() {
            say(pid, "its mappings");
        }
        let file = |id: u32| {
            snapshot
                .files
                .get((id as usize).wrapping_sub(1))
                .is_some_and(|f| f.id == id && f.kind.is_some())
        };
        let object = |id: u32| {
            let shared = snapshot.shared.get((id as usize).wrapping_sub(1));
            shared.is_some_and(|s| s.id == id && s.size < 1 << 47)
        };
        let objects = snapshot.files.iter().all(|file| match &file.kind {
            Some(FileKind::Object(file)) => object(file.object),
            _ => true,
        });
        let mapped = |m: &Mapping| match m.kind() {
            Kind::FilePrivate | Kind::FileShared => file(m.file),
            Kind::AnonymousShared => object(m.file),
            _ => true,
        };
        if !objects
            || !memory.mappings.iter().all(mapped)
            || !process
                .descriptors
                .iter()
                .all(|d| file(d.file) && d.fd < 1 << 24)
        {
            say(pid, "its files");
        }
        if process
            .descriptors
            .windows(2)
            .any(|pair| pair[0].fd >= pair[1].fd)
        {
            say(pid, "its descriptors");
        }
        let mut ended = process.threads.iter().filter(|t| t.ended.is_some());
        if ended.clone().count() == process.threads.len() || ended.any(|t| t.tid != pid) {
            say(pid, "its threads");
        }
        if process
            .threads
            .iter()
            .filter(|t| t.ended.is_none())
            .any(|t| remote::sys::registers_from_bytes(&t.registers).is_none())
        {
            say(pid, "its registers");
        }
    }
    if !pids.contains(&snapshot.root) {
        say(snapshot.root, "its first process");
    }
    bad
}

/// Looks at all regular files; gives those to be cut back.
fn check_files(
    snapshot: &Snapshot,
    policy: FilesPolicy,
    refusals: &mut Vec<Refusal>,
) -> Vec<Regular> {
    use regular::Changed;
    let mut cut: Vec<Regular> = Vec::new();
    for file in &snapshot.files {
        let Some(FileKind::Regular(regular)) = &file.kind else {
            continue;
        };
        // Files of /proc and the like have no size of their own.
        if regular.path.starts_with("/proc/") || regular.path.starts_with("/sys/") {
            continue;
        }
        let path = regular.path.as_str();
        let written = file.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
        match regular::changed(regular) {
            None => {}
            Some(Changed::Missing(error)) => {
                refusals.push(refusal(
                    snapshot.root,
                    path,
                    &format!("it cannot be found: {error}"),
                    "put the file back in its place",
                ));
            }
            Some(Changed::Text) => {
                let why = "it is another executable or library than at the checkpoint (build id or size differ)";
                refusals.push(refusal(
                    snapshot.root,
                    path,
                    why,
                    "put back the version the job was running",
                ));
            }
            Some(Changed::Shorter(size))
                if policy == FilesPolicy::Fail || (written && policy != FilesPolicy::Keep) =>
            {
                let why = format!(
                    "it has {size} bytes, {} fewer than at the checkpoint",
                    regular.size - size
                );
                refusals.push(refusal(
                    snapshot.root,
                    path,
                    &why,
                    "put back the file as it was, or restore with --files keep",
                ));
            }
            Some(Changed::Longer(size)) if policy == FilesPolicy::Fail => {
                let why = format!(
                    "it has {size} bytes, {} more than at the checkpoint",
                    size - regular.size
                );
                refusals.push(refusal(
                    snapshot.root,
                    path,
                    &why,
                    "restore with --files truncate or keep",
                ));
            }
            Some(Changed::Longer(_))
                if policy == FilesPolicy::Truncate
                    && written
                    && !cut.iter().any(|other| other.path == regular.path) =>
            {
                cut.push(regular.clone());
            }
            Some(_) => {}
        }
    }
    cut
}
