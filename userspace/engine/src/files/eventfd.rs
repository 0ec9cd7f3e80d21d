//! eventfd(2).

use images::proto::EventFd;
use images::proto::open_file::Kind;

use super::{Held, Shell};

pub(crate) fn capture(held: &Held) -> Kind {
    // fs/eventfd.c, eventfd_show_fdinfo: the count is in hexadecimal.
    let hex = |name: &str| {
        let value = held
            .info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default();
        u64::from_str_radix(value.trim(), 16).unwrap_or(0)
    };
    Kind::Eventfd(EventFd {
        count: hex("eventfd-count"),
        semaphore: hex("eventfd-semaphore") != 0,
    })
}

pub(crate) fn open(shell: &mut Shell, eventfd: &EventFd, flags: u32) -> u32 {
    let mut open_flags = flags as i32 & libc::O_NONBLOCK;
    if eventfd.semaphore {
        open_flags |= libc::EFD_SEMAPHORE;
    }
    let fd = shell.open(
        libc::SYS_eventfd2,
        &[0.into(), open_flags.into()],
        "make an eventfd",
    );
    if eventfd.count != 0 {
        let count = shell.program.words(&[eventfd.count]);
        shell.program.must(
            libc::SYS_write,
            &[fd.into(), count.into(), 8.into()],
            "set its count",
        );
    }
    fd
}
