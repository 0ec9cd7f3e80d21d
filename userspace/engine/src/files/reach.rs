//! Files that a process has open and could not open again: it had rights when it did that it has given up since (setuid(2)). A restored
//! process opens its files with the rights that it has.

use std::collections::HashMap;

use images::proto::open_file::Kind;
use images::proto::{Credentials, OpenFile, Process};
use remote::sys;

use crate::Refusal;

// include/uapi/linux/capability.h
const CAP_DAC_OVERRIDE: u32 = 1;

/// Files that whoever is to make them, the first process that has them, may not open.
pub(crate) fn check(processes: &[Process], files: &[OpenFile]) -> Vec<Refusal> {
    let mut makers = HashMap::new();
    for process in processes {
        for descriptor in &process.descriptors {
            makers
                .entry(descriptor.file)
                .or_insert((process, descriptor.fd));
        }
    }
    let mut made: HashMap<u32, Vec<(u32, &str, i32)>> = HashMap::new();
    for file in files {
        let (Some((maker, fd)), Some(path)) = (makers.get(&file.id), path(file)) else {
            continue;
        };
        let mode = match file.flags as i32 & libc::O_ACCMODE {
            libc::O_RDONLY => libc::R_OK,
            libc::O_WRONLY => libc::W_OK,
            _ => libc::R_OK | libc::W_OK,
        };
        made.entry(maker.pid).or_default().push((*fd, path, mode));
    }
    processes
        .iter()
        .filter_map(|process| Some(out_of_reach(process, made.get(&process.pid)?)))
        .flatten()
        .collect()
}

/// Where it is opened by its name.
fn path(file: &OpenFile) -> Option<&str> {
    match file.kind.as_ref()? {
        Kind::Regular(regular) => Some(&regular.path),
        Kind::Directory(directory) if !directory.deleted => Some(&directory.path),
        _ => None,
    }
}

fn out_of_reach(process: &Process, files: &[(u32, &str, i32)]) -> Vec<Refusal> {
    let credentials = process.threads.first().and_then(|t| t.credentials.as_ref());
    let Some(credentials) = credentials.filter(|c| may_lack(c) && process.root == "/") else {
        return Vec::new();
    };
    let ids = (
        credentials.fsuid,
        credentials.fsgid,
        credentials.groups.as_slice(),
    );
    let asked: Vec<(&str, i32)> = files.iter().map(|(_, path, mode)| (*path, *mode)).collect();
    // Whom we cannot be we cannot restore either, or only as ourselves.
    let answers = sys::may_open(ids, &asked).unwrap_or_default();
    let denied = files.iter().zip(answers).filter(|(_, answer)| {
        let error = answer.as_ref().err();
        error.and_then(std::io::Error::raw_os_error) == Some(libc::EACCES)
    });
    denied
        .map(|((fd, path, _), _)| Refusal {
            pid: process.pid,
            what: format!("descriptor {fd} ({path})"),
            why: format!(
                "it was opened with rights that the process has given up: user {} may not open it again",
                credentials.fsuid
            ),
            advice: "give that user the right to (chown, chmod, setfacl), or have the program open the file later".to_owned(),
        })
        .collect()
}

/// Whether it may have had more rights once.
fn may_lack(credentials: &Credentials) -> bool {
    credentials.fsuid != 0 && credentials.effective >> CAP_DAC_OVERRIDE & 1 == 0
}
