//! epoll(7): what is watched, by which open file and number, nested too.

use images::proto::open_file::Kind;
use images::proto::{Descriptor, Epoll, EpollItem, OpenFile, Process};
use remote::sys;

use super::{Held, Making, Shell, Why};

// include/uapi/linux/eventpoll.h, Linux 6.9
const EPIOCSPARAMS: u64 = 0x4008_8a01;
const EPIOCGPARAMS: u64 = 0x8008_8a02;

pub(crate) fn capture(held: &Held) -> Kind {
    let mut busy = sys::ioctl_read(&held.file, EPIOCGPARAMS, 8).unwrap_or_default();
    if busy.iter().all(|&byte| byte == 0) {
        busy.clear();
    }
    Kind::Epoll(Epoll {
        busy,
        ..Default::default()
    })
}

/// Finds the open file of each registration among those of the job.
pub(crate) fn finish(
    files: &mut [OpenFile],
    pending: &[(u32, Held)],
    processes: &[(u32, &[Descriptor])],
    refuse: &mut dyn FnMut(&Held, Why),
) {
    for (id, held) in pending {
        let Some(Kind::Epoll(epoll)) = &mut files[*id as usize - 1].kind else {
            continue;
        };
        let mut seen: Vec<u32> = Vec::new();
        for (fd, events, data) in registrations(&held.info) {
            let nth = seen.iter().filter(|&&other| other == fd).count() as u32;
            seen.push(fd);
            match target(held, fd, nth, processes) {
                Some(file) => epoll.items.push(EpollItem {
                    fd,
                    file,
                    events,
                    data,
                }),
                None => refuse(
                    held,
                    (
                        format!(
                            "it watches an open file, once descriptor {fd}, that no process of the job holds any more"
                        ),
                        "let the program remove it from the epoll before it closes it".to_owned(),
                    ),
                ),
            }
        }
    }
}

/// "tfd: 5 events: 19 data: 7 pos:0 ino:.. sdev:.." (fs/eventpoll.c, ep_show_fdinfo).
fn registrations(info: &str) -> Vec<(u32, u32, u64)> {
    let parse = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let fd = words.next()?.parse().ok()?;
        let mut after = |name| {
            words.by_ref().find(|word| *word == name)?;
            u64::from_str_radix(words.next()?, 16).ok()
        };
        Some((fd, after("events:")? as u32, after("data:")?))
    };
    info.lines().filter_map(parse).collect()
}

/// The watched file: usually what the registering process still has under that number.
fn target(held: &Held, fd: u32, nth: u32, processes: &[(u32, &[Descriptor])]) -> Option<u32> {
    let is = |pid: u32, d: &Descriptor| {
        sys::epoll_target_is(pid as i32, d.fd, held.pid as i32, held.fd, fd, nth).unwrap_or(false)
    };
    let same = |&(pid, descriptors): &(u32, &[Descriptor])| {
        descriptors
            .iter()
            .find(|d| d.fd == fd && is(pid, d))
            .map(|d| d.file)
    };
    let any = |&(pid, descriptors): &(u32, &[Descriptor])| {
        descriptors.iter().find(|d| is(pid, d)).map(|d| d.file)
    };
    let own = processes.iter().filter(|(pid, _)| *pid == held.pid);
    own.clone()
        .find_map(same)
        .or_else(|| own.clone().find_map(any))
        .or_else(|| processes.iter().find_map(any))
}

pub(crate) fn open(shell: &mut Shell, epoll: &Epoll) -> u32 {
    let fd = shell.open(libc::SYS_epoll_create1, &[0.into()], "make an epoll");
    if !epoll.busy.is_empty() {
        let busy = shell.program.bytes(epoll.busy.clone());
        let args = [fd.into(), EPIOCSPARAMS.into(), busy.into()];
        let label = "set how it polls busily";
        shell.program.must(libc::SYS_ioctl, &args, label);
    }
    fd
}

/// Registers what the epolls made by `process` watch, when every file is in its place. Events that were pending are found again by the kernel,
/// which looks at each file's state as it is added.
pub(crate) fn register(shell: &mut Shell, making: &Making<'_>, process: &Process) {
    for file in making.files {
        let Some(Kind::Epoll(epoll)) = &file.kind else {
            continue;
        };
        if making
            .maker(file.id)
            .is_none_or(|maker| maker.pid != process.pid)
        {
            continue;
        }
        for item in &epoll.items {
            let held = process
                .descriptors
                .iter()
                .any(|d| d.fd == item.fd && d.file == item.file);
            let mut temporary = None;
            if !held {
                // The number it was registered under has another file by now, or none: put the right one there for the moment.
                let maker = making.maker(item.file).map_or(0, |maker| maker.pid);
                let got = if maker == process.pid {
                    making.place(item.file)
                } else {
                    shell.fetch(maker, making.place(item.file))
                };
                let parked = process
                    .descriptors
                    .iter()
                    .any(|d| d.fd == item.fd)
                    .then(|| {
                        let parked = making.place(0);
                        shell.duplicate(item.fd, parked, true);
                        shell.close(item.fd);
                        parked
                    });
                shell.duplicate(got, item.fd, true);
                temporary = Some((got, maker != process.pid, parked));
            }
            let event = shell
                .program
                .bytes([&item.events.to_ne_bytes()[..], &item.data.to_ne_bytes()[..]].concat());
            let args = [
                making.place(file.id).into(),
                libc::EPOLL_CTL_ADD.into(),
                item.fd.into(),
                event.into(),
            ];
            shell.program.must(
                libc::SYS_epoll_ctl,
                &args,
                format!("watch descriptor {}", item.fd),
            );
            if let Some((got, fetched, parked)) = temporary {
                shell.close(item.fd);
                if fetched {
                    shell.close(got);
                }
                if let Some(parked) = parked {
                    let flag = process
                        .descriptors
                        .iter()
                        .any(|d| d.fd == item.fd && d.close_on_exec);
                    shell.rename(parked, item.fd, flag);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::registrations;

    #[test]
    fn fdinfo() {
        let info = "pos:\t0\nflags:\t02\ntfd:        5 events:       19 data:                7  pos:0 ino:1d sdev:9\n";
        assert_eq!(registrations(info), [(5, 0x19, 7)]);
    }
}
