//! The user namespace of a job (user_namespaces(7)), as `unshare -r` makes it: a child of ours in which we are root.

use std::fs::File;

use images::proto::shared_memory::Kind;
use images::proto::{Credentials, IdRange, Snapshot, UserNamespace};
use remote::sys;

use super::{differs, read};
use crate::Refusal;

fn ranges(text: &str) -> Vec<IdRange> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().filter_map(|word| word.parse().ok());
        Some(IdRange {
            inside: words.next()?,
            outside: words.next()?,
            count: words.next()?,
        })
    };
    text.lines().filter_map(line).collect()
}

fn text(ranges: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.inside, range.outside, range.count);
    ranges.iter().map(line).collect()
}

/// An id as it is inside.
fn inside(ranges: &[IdRange], id: u32) -> Option<u32> {
    let mut ranges = ranges.iter();
    ranges.find_map(|range| {
        let offset = id.checked_sub(range.outside)?;
        (offset < range.count).then(|| range.inside + offset)
    })
}

/// That of a process; `Err` says why it cannot be made again.
pub(super) fn of(pid: u32) -> Result<Option<UserNamespace>, String> {
    if !differs(pid, "user") {
        return Ok(None);
    }
    let path = format!("/proc/{pid}/ns/user");
    let looked = File::open(&path).and_then(|file| sys::user_namespace(&file));
    let (parent, owner) = looked.map_err(|error| format!("it cannot be looked at: {error}"))?;
    let own = std::fs::metadata("/proc/self/ns/user");
    if own.map_or(true, |own| {
        std::os::unix::fs::MetadataExt::ino(&own) != parent
    }) {
        return Err("it lies in another user namespace than that of ckptd".to_owned());
    }
    Ok(Some(UserNamespace {
        uids: ranges(&read(&format!("/proc/{pid}/uid_map"))),
        gids: ranges(&read(&format!("/proc/{pid}/gid_map"))),
        setgroups_denied: read(&format!("/proc/{pid}/setgroups")).trim() == "deny",
        owner,
    }))
}

/// Ids as they are inside. Groups stay the host's where nobody may set them: they are as those of whoever restores the job.
pub(super) fn translate(credentials: &mut Credentials, user: &UserNamespace) -> Result<(), String> {
    let map = |ranges: &[IdRange], id: &mut u32| {
        *id = inside(ranges, *id).ok_or_else(|| format!("id {id} has no name inside"))?;
        Ok::<(), String>(())
    };
    let c = credentials;
    for id in [&mut c.ruid, &mut c.euid, &mut c.suid, &mut c.fsuid] {
        map(&user.uids, id)?;
    }
    for id in [&mut c.rgid, &mut c.egid, &mut c.sgid, &mut c.fsgid] {
        map(&user.gids, id)?;
    }
    if !user.setgroups_denied {
        for id in &mut c.groups {
            map(&user.gids, id)?;
        }
    }
    Ok(())
}

/// What a process of ours is once it is inside (kernel/user_namespace.c, set_cred_user_ns).
pub(super) fn entered(ours: &Credentials, user: &UserNamespace) -> Credentials {
    let last = read("/proc/sys/kernel/cap_last_cap");
    let all = u64::MAX >> (63 - last.trim().parse::<u32>().unwrap_or(40).min(63));
    let mut inside = Credentials {
        inheritable: 0,
        permitted: all,
        effective: all,
        bounding: all,
        ambient: 0,
        securebits: 0,
        ..ours.clone()
    };
    let _ = translate(&mut inside, user);
    inside
}

/// What is written to setgroups, uid_map and gid_map of its first process.
pub(super) fn maps(user: &UserNamespace) -> [(&'static str, String); 3] {
    let may = if user.setgroups_denied {
        "deny"
    } else {
        "allow"
    };
    [
        ("setgroups", may.to_owned()),
        ("uid_map", text(&user.uids)),
        ("gid_map", text(&user.gids)),
    ]
}

/// What cannot be made again from inside, where nobody has rights over the host.
pub(super) fn impossible(snapshot: &Snapshot) -> Vec<Refusal> {
    let anonymous = snapshot
        .shared
        .iter()
        .filter(|shared| shared.kind() == Kind::Anonymous);
    let refusals = anonymous.take(1).map(|_| Refusal {
        pid: snapshot.root,
        what: "shared anonymous memory".to_owned(),
        why:
            "the job is in a user namespace, where nobody may make that again (/proc/PID/map_files)"
                .to_owned(),
        advice: "start it without a user namespace".to_owned(),
    });
    refusals.collect()
}

/// Why it cannot be made here.
pub(super) fn check(
    snapshot: &Snapshot,
    user: &UserNamespace,
    ours: &Credentials,
) -> Option<Refusal> {
    let refuse = |why: String, advice: String| {
        let what = "its user namespace".to_owned();
        Some(Refusal {
            pid: snapshot.root,
            what,
            why,
            advice,
        })
    };
    if user.owner != ours.euid {
        let why = format!(
            "user {} made it, and ckptd runs as user {}",
            user.owner, ours.euid
        );
        return refuse(why, "restore as that user".to_owned());
    }
    if (inside(&user.uids, ours.euid), inside(&user.gids, ours.egid)) != (Some(0), Some(0)) {
        let why = "whoever restores it would not be its root".to_owned();
        return refuse(
            why,
            "restore as the user and group who are root inside (/proc/PID/uid_map)".to_owned(),
        );
    }
    let threads = snapshot
        .processes
        .iter()
        .flat_map(|process| &process.threads);
    let mut wanted = threads.filter_map(|thread| thread.credentials.as_ref());
    let other = wanted.find(|wanted| user.setgroups_denied && wanted.groups != ours.groups)?;
    let why = format!(
        "its processes are members of the groups {:?}, ckptd of {:?}",
        other.groups, ours.groups
    );
    refuse(
        why,
        "restore with those groups (setpriv --groups)".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_inside_and_outside() {
        let map = ranges("         0       1000          1\n         1     100000      65536\n");
        assert_eq!(inside(&map, 1000), Some(0));
        assert_eq!(inside(&map, 100_005), Some(6));
        assert_eq!(inside(&map, 0), None);
        assert_eq!(text(&map), "0 1000 1\n1 100000 65536\n");
    }
}
