//! keyrings(7): keys that only a thread, a process or a session has. No key can be made again with the serial number it had, so who has some
//! is refused. A session that ckptd is in too counts as the host's: the job comes back in that of the restore.

use remote::{Arg, Blob, Outcome, Program, sys};

// include/uapi/linux/keyctl.h
const SYS_KEYCTL: i64 = libc::SYS_keyctl;
const KEYCTL_GET_KEYRING_ID: u64 = 0;
const KEYCTL_READ: u64 = 11;
const OF_THREAD: i32 = -1;
const OF_PROCESS: i32 = -2;
const OF_SESSION: i32 = -3;
/// Of the user, which every session leads to.
const OF_USER: [i32; 2] = [-4, -5];
/// What one user has of keys without any of these: its two keyrings.
const USUAL: u32 = 2;
/// Serial numbers that are looked at.
const MOST: usize = 64;

/// Questions put to a thread.
pub(crate) struct Questions {
    keyrings: Vec<(&'static str, usize, usize, Blob)>,
    users: Vec<usize>,
}

/// Whether there may be such keys on this machine.
fn exist() -> bool {
    // "    0:     3 2/2 2/1000000 44/25000000": in the third place those that count (security/keys/proc.c, proc_key_users_show).
    let text = std::fs::read_to_string("/proc/key-users").unwrap_or_default();
    let count = |line: &str| {
        let counted = line.split_whitespace().nth(3)?.split('/').next()?;
        counted.parse::<u32>().ok()
    };
    text.lines().filter_map(count).any(|count| count > USUAL)
}

/// Asks for the keyrings of a thread, where there may be some.
pub(crate) fn ask(program: &mut Program) -> Option<Questions> {
    exist().then(|| {
        let find = |program: &mut Program, id: i32| {
            let args = [KEYCTL_GET_KEYRING_ID.into(), id.into(), 0.into()];
            program.try_call(SYS_KEYCTL, &args, "find a keyring")
        };
        let mut look = |(what, id): (&'static str, i32)| {
            let found = find(program, id);
            let list = program.output(4 * MOST);
            let args = [
                KEYCTL_READ.into(),
                Arg::Result(found),
                list.into(),
                (4 * MOST).into(),
            ];
            let read = program.try_call(SYS_KEYCTL, &args, "list a keyring");
            (what, found, read, list)
        };
        let keyrings = [
            ("thread", OF_THREAD),
            ("process", OF_PROCESS),
            ("session", OF_SESSION),
        ];
        Questions {
            keyrings: keyrings.into_iter().map(&mut look).collect(),
            users: OF_USER.map(|id| find(program, id)).to_vec(),
        }
    })
}

impl Questions {
    /// Whose keyring it is that has keys: "thread", "process" or "session".
    pub(crate) fn answer(self, outcome: &Outcome) -> Option<&'static str> {
        let ours = sys::session_keyring().ok();
        let users: Vec<i64> = self.users.iter().map(|&nth| outcome.results[nth]).collect();
        let has_keys = |&(_, found, read, list): &(&str, usize, usize, Blob)| {
            let (found, length) = (outcome.results[found], outcome.results[read]);
            if found <= 0 || length <= 0 || ours.is_some_and(|ours| i64::from(ours) == found) {
                return false;
            }
            let serials = outcome.output(list).chunks_exact(4);
            let serial = |bytes: &[u8]| i32::from_ne_bytes(bytes.try_into().unwrap_or_default());
            let serials = serials.map(serial).take(length as usize / 4);
            length as usize > 4 * MOST
                || serials
                    .into_iter()
                    .any(|serial| !users.contains(&i64::from(serial)))
        };
        self.keyrings
            .iter()
            .find(|one| has_keys(one))
            .map(|(what, ..)| *what)
    }
}
