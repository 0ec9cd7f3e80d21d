//! signalfd(2).

use images::proto::SignalFd;
use images::proto::open_file::Kind;

use super::{Held, Shell};

pub(crate) fn capture(held: &Held) -> Kind {
    let mask = held
        .info
        .lines()
        .find_map(|line| line.strip_prefix("sigmask:"))
        .unwrap_or_default();
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap_or(0);
    Kind::Signalfd(SignalFd { mask })
}

pub(crate) fn open(shell: &mut Shell, signalfd: &SignalFd, flags: u32) -> u32 {
    let mask = shell.program.words(&[signalfd.mask]);
    let flags = flags as i32 & libc::O_NONBLOCK;
    let args = [(-1i32).into(), mask.into(), 8.into(), flags.into()];
    shell.open(libc::SYS_signalfd4, &args, "make a signalfd")
}
