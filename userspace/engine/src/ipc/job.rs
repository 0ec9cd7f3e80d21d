//! Which objects of the host's are the job's.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io;

use images::proto::{IpcObject, Process};
use remote::ipc::Kind;

use super::list::{Line, NS_PER_S, began, is_alive};
use crate::Refusal;

/// What is known of a job whose objects are looked for.
pub(crate) struct Job<'a> {
    pub(crate) root: u32,
    /// Processes of the job: their pids as we see them, and inside the job.
    pub(crate) members: &'a HashMap<u32, u32>,
    pub(crate) processes: &'a [Process],
    /// Filled when it is asked for.
    pub(crate) began: OnceCell<u64>,
}

impl Job<'_> {
    pub(super) fn refusal(&self, what: String, why: String, advice: &str) -> Refusal {
        Refusal {
            pid: self.root,
            what,
            why,
            advice: advice.to_owned(),
        }
    }

    /// What `read` gives of each object of a kind that is the job's. `users` has used it; `unreadable` is what cannot be read of it, and what
    /// to do then.
    pub(super) fn objects<T>(
        &self,
        kind: Kind,
        users: impl Fn(&Line) -> Vec<u32>,
        read: impl Fn(&Line, IpcObject) -> io::Result<T>,
        unreadable: (&str, &str),
        refusals: &mut Vec<Refusal>,
    ) -> Vec<T> {
        let mut found = Vec::new();
        for line in super::list(kind) {
            let object = line.object(kind);
            let what = super::name(kind, &object);
            match self.owns(&line, &users(&line)) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(pid) => {
                    let why = format!("process {pid} outside of the job uses it too");
                    let advice = "checkpoint that process together with the job (start both under `ckptd run`)";
                    refusals.push(self.refusal(what, why, advice));
                    continue;
                }
            }
            match read(&line, object) {
                Ok(object) => found.push(object),
                // Removed since it was listed: by others, as the job stands still.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM)) => {}
                Err(error) => {
                    let why = format!("its {} cannot be read: {error}", unreadable.0);
                    refusals.push(self.refusal(what, why, unreadable.1));
                }
            }
        }
        found
    }

    /// Whether an object is the job's: by who has used it; one that nobody has used yet, by who has made it when. `Err`: a process
    /// outside uses it too.
    fn owns(&self, line: &Line, users: &[u32]) -> Result<bool, u32> {
        let used = |pid: &u32| line.is_by(*pid);
        let stranger = |pid: &&u32| !self.members.contains_key(pid) && used(pid) && is_alive(**pid);
        let member = users
            .iter()
            .any(|pid| self.members.contains_key(pid) && used(pid));
        match users.iter().find(stranger) {
            Some(&pid) if member => Err(pid),
            Some(_) => Ok(false),
            None if users.is_empty() => Ok(self.may_have_made(line)),
            None if !member && self.may_have_made(line) => {
                let (key, users) = (line.number("key") as u32, users.len());
                tracing::warn!(
                    "the System V object with key {key:#x} is left out: {users} processes that have ended used it last"
                );
                Ok(false)
            }
            None => Ok(member),
        }
    }

    fn may_have_made(&self, line: &Line) -> bool {
        self.has_uid(line.number("cuid") as u32) && line.number("ctime") >= self.began()
    }

    fn has_uid(&self, uid: u32) -> bool {
        let ids = |process: &Process| Some(process.threads.first()?.credentials.as_ref()?.euid);
        self.processes
            .iter()
            .any(|process| ids(process) == Some(uid))
    }

    /// When the first process of the job was started, in seconds since the epoch.
    fn began(&self) -> u64 {
        let began = || began(self.root).unwrap_or(u64::MAX) / NS_PER_S;
        *self.began.get_or_init(began)
    }

    /// Pids as they are inside.
    pub(super) fn inner(&self, pid: u32) -> u32 {
        self.members.get(&pid).copied().unwrap_or(0)
    }
}
