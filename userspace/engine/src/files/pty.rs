//! Pseudo terminals whose master is held inside the job.

use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{OpenFile, Pty};

use super::{Held, Making, Shell, Why};

/// `None` when the device is no pseudo terminal.
pub(crate) fn capture(held: &Held) -> Option<Result<Kind, Why>> {
    let major = nix::sys::stat::major(held.meta.rdev());
    let master = held.meta.rdev() == libc::makedev(5, 2);
    let slave = (136..144).contains(&major);
    (master || slave).then(|| {
        let why = "pseudo terminals inside a job are not supported yet".to_owned();
        Err((why, "start the program without a terminal of its own".to_owned()))
    })
}

pub(crate) fn finish(_files: &mut [OpenFile], _pending: &[(u32, Held)], _refuse: &mut dyn FnMut(&Held, Why)) {}

pub(crate) fn open(_shell: &mut Shell, _making: &Making<'_>, _end: &Pty, _file: &OpenFile) -> Option<u32> {
    None
}
