//! Who a thread is: user and group ids, capabilities, securebits, no_new_privs.

use images::proto::{Credentials, Process, Snapshot, User};
use remote::{Arg, Program};

use crate::Refusal;
use crate::files::Shell;
use crate::procfs::Status;

/// prctl(2) operations.
pub(crate) const PR_GET_SECUREBITS: u64 = 27;
const PR_SET_SECUREBITS: u64 = 28;
const PR_CAPBSET_DROP: u64 = 24;
const PR_SET_NO_NEW_PRIVS: u64 = 38;
const PR_CAP_AMBIENT: u64 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const SECBIT_KEEP_CAPS: u64 = 1 << 4;
const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
/// linux/capability.h, _LINUX_CAPABILITY_VERSION_3.
const CAPABILITY_VERSION: u64 = 0x2008_0522;

/// From /proc/TID/status and the answer to PR_GET_SECUREBITS.
pub(crate) fn credentials(status: &Status, securebits: u32) -> Credentials {
    let id = |name: &str, nth: usize| status.numbers(name).get(nth).copied().unwrap_or(0);
    Credentials {
        ruid: id("Uid", 0),
        euid: id("Uid", 1),
        suid: id("Uid", 2),
        fsuid: id("Uid", 3),
        rgid: id("Gid", 0),
        egid: id("Gid", 1),
        sgid: id("Gid", 2),
        fsgid: id("Gid", 3),
        groups: status.numbers("Groups"),
        inheritable: status.hex("CapInh"),
        permitted: status.hex("CapPrm"),
        effective: status.hex("CapEff"),
        bounding: status.hex("CapBnd"),
        ambient: status.hex("CapAmb"),
        securebits,
        no_new_privs: status.number("NoNewPrivs") != 0,
    }
}

/// Names of the users whose ids processes have, as far as they have names.
pub(crate) fn users(processes: &[Process]) -> Vec<User> {
    let threads = processes.iter().flat_map(|process| &process.threads);
    let credentials = threads.filter_map(|thread| thread.credentials.as_ref());
    let ids = credentials.flat_map(|c| [c.ruid, c.euid, c.suid]);
    let ids: std::collections::BTreeSet<u32> = ids.collect();
    let user = |uid: u32| {
        let found = nix::unistd::User::from_uid(uid.into()).ok()??;
        let name = found.name;
        Some(User { uid, name })
    };
    ids.into_iter().filter_map(user).collect()
}

/// Users that this host does not have, or that somebody else is here.
pub(crate) fn check(snapshot: &Snapshot) -> Vec<Refusal> {
    let users = snapshot.host.iter().flat_map(|host| &host.users);
    let missing = users.filter_map(|User { uid, name }| {
        let here = nix::unistd::User::from_uid((*uid).into()).ok().flatten();
        let why = match here {
            Some(here) if here.name == *name => return None,
            Some(here) => format!("that user is called {} here", here.name),
            None => "there is no such user here".to_owned(),
        };
        Some(Refusal {
            pid: snapshot.root,
            what: format!("user {uid} ({name})"),
            why,
            advice: format!(
                "restore where that user is the same, or make it: useradd -u {uid} {name}"
            ),
        })
    });
    missing.collect()
}

/// Access to files is by the job's own ids from here on: with a file-system uid other than 0 the kernel takes the
/// capabilities that override file permissions away (capabilities(7)).
pub(crate) fn assume_files(program: &mut Program, wanted: &Credentials, ours: &Credentials) {
    set_groups(program, wanted, ours);
    if wanted.fsgid != ours.fsgid {
        program.try_call(
            libc::SYS_setfsgid,
            &[wanted.fsgid.into()],
            format!("access files as group {}", wanted.fsgid),
        );
    }
    if wanted.fsuid != ours.fsuid {
        program.try_call(
            libc::SYS_setfsuid,
            &[wanted.fsuid.into()],
            format!("access files as user {}", wanted.fsuid),
        );
    }
}

/// Accesses files by ckptd's own ids for a moment, with the capabilities that come with them.
pub(crate) fn files_as_ourselves(
    program: &mut Program,
    process: &Process,
    ours: &Credentials,
    work: impl FnOnce(&mut Program),
) {
    let become_ = |program: &mut Program, uid: u32, gid: u32| {
        program.try_call(
            libc::SYS_setfsuid,
            &[uid.into()],
            "set the file-system user",
        );
        program.try_call(
            libc::SYS_setfsgid,
            &[gid.into()],
            "set the file-system group",
        );
    };
    let own = process.threads.first().and_then(|t| t.credentials.as_ref());
    let own = own.filter(|own| (own.fsuid, own.fsgid) != (ours.fsuid, ours.fsgid));
    if own.is_some() {
        become_(program, ours.fsuid, ours.fsgid);
    }
    work(program);
    if let Some(own) = own {
        become_(program, own.fsuid, own.fsgid);
    }
}

/// Does something as another user, whom the kernel notes as the one who did.
pub(crate) fn as_user(
    shell: &mut Shell,
    process: &Process,
    ours: &Credentials,
    (uid, gid): (u32, u32),
    work: impl FnOnce(&mut Shell),
) {
    if (uid, gid) == (ours.euid, ours.egid) {
        return work(shell);
    }
    let become_ = |shell: &mut Shell, nr: i64, id: u32, label: &str| {
        let same = Arg::from(u64::from(u32::MAX));
        shell.program.must(nr, &[same, id.into(), same], label);
    };
    become_(shell, libc::SYS_setresgid, gid, "as the group that did");
    become_(shell, libc::SYS_setresuid, uid, "as the user that did");
    work(shell);
    become_(shell, libc::SYS_setresuid, ours.euid, "as before");
    become_(shell, libc::SYS_setresgid, ours.egid, "as before");
    if let Some(own) = process.threads.first().and_then(|t| t.credentials.as_ref()) {
        assume_files(&mut shell.program, own, ours);
    }
}

fn set_groups(program: &mut Program, wanted: &Credentials, ours: &Credentials) {
    if wanted.groups != ours.groups {
        let list: Vec<u8> = wanted
            .groups
            .iter()
            .flat_map(|gid| gid.to_ne_bytes())
            .collect();
        let blob = program.bytes(list);
        program.must(
            libc::SYS_setgroups,
            &[wanted.groups.len().into(), blob.into()],
            "set the groups",
        );
    }
}

/// Becomes `wanted` for good. Needs a thread that still has the rights of ckptd (`ours`).
pub(crate) fn assume(program: &mut Program, wanted: &Credentials, ours: &Credentials) {
    if wanted == ours {
        return;
    }
    set_groups(program, wanted, ours);
    let prctl = |program: &mut Program, args: &[u64], label: String| {
        let args: Vec<Arg> = args.iter().map(|&a| a.into()).collect();
        program.must(libc::SYS_prctl, &args, label);
    };
    for capability in (0..64).filter(|c| (ours.bounding & !wanted.bounding) >> c & 1 == 1) {
        prctl(
            program,
            &[PR_CAPBSET_DROP, capability],
            format!("drop capability {capability} from the bounding set"),
        );
    }
    let ids_differ = (
        wanted.ruid,
        wanted.euid,
        wanted.suid,
        wanted.rgid,
        wanted.egid,
        wanted.sgid,
    ) != (
        ours.ruid, ours.euid, ours.suid, ours.rgid, ours.egid, ours.sgid,
    );
    let had = u64::from(ours.securebits);
    if ids_differ {
        let keep = had | SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP;
        prctl(
            program,
            &[PR_SET_SECUREBITS, keep],
            "keep capabilities while ids change".to_owned(),
        );
        let gids = [wanted.rgid.into(), wanted.egid.into(), wanted.sgid.into()];
        program.must(
            libc::SYS_setresgid,
            &gids,
            format!("become group {}", wanted.egid),
        );
        let uids = [wanted.ruid.into(), wanted.euid.into(), wanted.suid.into()];
        program.must(
            libc::SYS_setresuid,
            &uids,
            format!("become user {}", wanted.euid),
        );
    }
    // These follow the effective ids unless they were set apart.
    if wanted.fsgid != wanted.egid || ids_differ {
        program.try_call(
            libc::SYS_setfsgid,
            &[wanted.fsgid.into()],
            "set the file-system group",
        );
    }
    if wanted.fsuid != wanted.euid || ids_differ {
        program.try_call(
            libc::SYS_setfsuid,
            &[wanted.fsuid.into()],
            "set the file-system user",
        );
    }
    let caps = |program: &mut Program, effective: u64, permitted: u64, inheritable: u64| {
        let header = program.words(&[CAPABILITY_VERSION]);
        let half =
            |shift: u32| [effective, permitted, inheritable].map(|set| (set >> shift) as u32);
        let data: Vec<u8> = [half(0), half(32)]
            .concat()
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect();
        let data = program.bytes(data);
        program.must(
            libc::SYS_capset,
            &[header.into(), data.into()],
            "set the capabilities",
        );
    };
    const SETPCAP: u64 = 1 << 8;
    // CAP_SETPCAP is needed until the securebits are as they should be.
    caps(
        program,
        (wanted.effective | SETPCAP) & ours.permitted,
        (wanted.permitted | SETPCAP) & ours.permitted,
        wanted.inheritable,
    );
    for capability in (0..64).filter(|c| wanted.ambient >> c & 1 == 1) {
        prctl(
            program,
            &[PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0],
            format!("make capability {capability} ambient"),
        );
    }
    if ids_differ || wanted.securebits != ours.securebits {
        prctl(
            program,
            &[PR_SET_SECUREBITS, u64::from(wanted.securebits)],
            "set the securebits".to_owned(),
        );
    }
    caps(
        program,
        wanted.effective,
        wanted.permitted,
        wanted.inheritable,
    );
    if wanted.no_new_privs && !ours.no_new_privs {
        prctl(
            program,
            &[PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0],
            "set no_new_privs".to_owned(),
        );
    }
}
