//! Rights that a restore needs for what the job holds: told when a checkpoint is taken without them, and again, as a refusal, when it is to
//! be restored without.

use images::proto::open_file::Kind;
use images::proto::{Credentials, Process, Snapshot};

use super::check::{alive, refusal};
use crate::Refusal;

// include/uapi/linux/capability.h
const SETGID: (u32, &str) = (6, "CAP_SETGID");
const SETUID: (u32, &str) = (7, "CAP_SETUID");
const NET_RAW: (u32, &str) = (13, "CAP_NET_RAW");
const SYS_NICE: (u32, &str) = (23, "CAP_SYS_NICE");
const SYS_RESOURCE: (u32, &str) = (24, "CAP_SYS_RESOURCE");

/// What we are, of what can be lowered without a right and not raised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ours<'a> {
    pub(crate) credentials: &'a Credentials,
    pub(crate) nice: i32,
    pub(crate) oom_score_adj: i32,
}

/// Hears of a process, what it has and the right that it takes.
type Lacks<'a> = dyn FnMut(u32, &str, (u32, &str)) + 'a;

/// Everything that cannot be restored for want of a right.
pub(crate) fn missing(snapshot: &Snapshot, ours: Ours<'_>) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut lacks = |process: u32, what: &str, (bit, name): (u32, &str)| {
        if ours.credentials.effective >> bit & 1 == 0 {
            let why = format!("to make it again takes {name}, which ckptd does not have");
            let advice = format!("restore as root, or with {name} (setcap, setpriv)");
            refusals.push(refusal(process, what, &why, &advice));
        }
    };
    for process in snapshot.processes.iter().filter(alive) {
        of_process(process, ours, &mut lacks);
    }
    for file in &snapshot.files {
        let Some(Kind::Datagram(socket)) = &file.kind else {
            continue;
        };
        let packet = socket.domain == libc::AF_PACKET as u32;
        if packet
            || socket.r#type == libc::SOCK_RAW as u32 && socket.domain != libc::AF_NETLINK as u32
        {
            lacks(
                snapshot.root,
                if packet {
                    "a packet socket"
                } else {
                    "a raw socket"
                },
                NET_RAW,
            );
        } else if !socket.queue.is_empty() {
            lacks(
                snapshot.root,
                "datagrams that wait in a UDP socket",
                NET_RAW,
            );
        }
    }
    let processes = snapshot.processes.iter().filter(alive);
    for process in processes {
        let threads = process
            .threads
            .iter()
            .filter_map(|thread| thread.credentials.as_ref());
        let all = threads.fold(0, |all, credentials| all | credentials.permitted);
        let beyond = all & !ours.credentials.permitted;
        if beyond != 0 {
            let why = format!("ckptd does not have all of them itself (missing: {beyond:#x})");
            let advice = "restore as root";
            refusals.push(refusal(process.pid, "its capabilities", &why, advice));
        }
    }
    refusals
}

fn of_process(process: &Process, ours: Ours<'_>, lacks: &mut Lacks<'_>) {
    let own = ours.credentials;
    let mut needs = [false; 4];
    for thread in &process.threads {
        if let Some(c) = &thread.credentials {
            let uids = [own.ruid, own.euid, own.suid];
            let gids = [own.rgid, own.egid, own.sgid];
            needs[0] |= [c.ruid, c.euid, c.suid].iter().any(|id| !uids.contains(id));
            needs[1] |= [c.rgid, c.egid, c.sgid].iter().any(|id| !gids.contains(id));
            needs[1] |= c.groups != own.groups;
        }
        if let Some(scheduling) = &thread.scheduling {
            let (real_time, deadline) = (1..=2, 6);
            needs[2] |= scheduling.nice < ours.nice
                || real_time.contains(&scheduling.policy)
                || scheduling.policy == deadline;
        }
    }
    needs[3] = process.oom_score_adj < ours.oom_score_adj;
    let whats = [
        "its user",
        "its groups",
        "its scheduling",
        "its oom_score_adj",
    ];
    let rights = [SETUID, SETGID, SYS_NICE, SYS_RESOURCE];
    for ((need, what), right) in needs.iter().zip(whats).zip(rights) {
        if *need {
            lacks(process.pid, what, right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::proto::{DatagramSocket, OpenFile, Thread};

    #[test]
    fn named_by_process_and_right() {
        let thread = |uid: u32| Thread {
            credentials: Some(Credentials {
                ruid: uid,
                ..Default::default()
            }),
            ..Default::default()
        };
        let raw = DatagramSocket {
            domain: libc::AF_INET as u32,
            r#type: libc::SOCK_RAW as u32,
            ..Default::default()
        };
        let snapshot = Snapshot {
            processes: vec![Process {
                pid: 7,
                threads: vec![thread(5)],
                ..Default::default()
            }],
            files: vec![OpenFile {
                id: 1,
                kind: Some(Kind::Datagram(raw)),
                ..Default::default()
            }],
            ..Default::default()
        };
        let told = |effective: u64| {
            let credentials = &Credentials {
                effective,
                ..Default::default()
            };
            let (nice, oom_score_adj) = (0, 0);
            let all = missing(
                &snapshot,
                Ours {
                    credentials,
                    nice,
                    oom_score_adj,
                },
            );
            all.into_iter().map(|one| one.what).collect::<Vec<_>>()
        };
        assert_eq!(told(0), ["its user", "a raw socket"]);
        assert_eq!(told(1 << 7), ["a raw socket"]);
        assert!(told(u64::MAX).is_empty());
    }
}
