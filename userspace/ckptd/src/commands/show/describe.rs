//! Records in words.

use images::proto::{OpenFile, mapping, open_file::Kind};
use nix::libc;

/// What kind of open file it is.
pub(crate) fn kind(file: &OpenFile) -> &'static str {
    match &file.kind {
        Some(Kind::Regular(_)) => "file",
        Some(Kind::Directory(_)) => "directory",
        Some(Kind::Device(_)) => "device",
        Some(Kind::Pipe(pipe)) if pipe.path.is_empty() => "pipe",
        Some(Kind::Pipe(_)) => "fifo",
        Some(Kind::Eventfd(_)) => "eventfd",
        Some(Kind::Epoll(_)) => "epoll",
        Some(Kind::Terminal(_)) => "terminal",
        Some(Kind::Pty(_)) => "pty",
        Some(Kind::Outer(_)) => "outer",
        Some(Kind::Timerfd(_)) => "timerfd",
        Some(Kind::Signalfd(_)) => "signalfd",
        Some(Kind::Pidfd(_)) => "pidfd",
        Some(Kind::Inotify(_)) => "inotify",
        Some(Kind::Path(_)) => "path",
        Some(Kind::Object(_)) => "object",
        Some(Kind::Unix(_)) => "unix",
        Some(Kind::Tcp(_)) => "tcp",
        Some(Kind::Datagram(socket)) if socket.domain == libc::AF_NETLINK as u32 => "netlink",
        Some(Kind::Datagram(_)) => "udp",
        Some(Kind::PosixQueue(_)) => "mqueue",
        None => "unknown",
    }
}

/// The open file in words.
pub(crate) fn what(file: &OpenFile) -> String {
    match &file.kind {
        Some(Kind::Regular(regular)) => format!(
            "{} at byte {} of {}",
            regular.path, regular.offset, regular.size
        ),
        Some(Kind::Directory(directory)) => directory.path.clone(),
        Some(Kind::Device(device)) => device.path.clone(),
        Some(Kind::Pipe(pipe)) => {
            let name = if pipe.path.is_empty() {
                format!("pipe:[{}]", pipe.pipe)
            } else {
                pipe.path.clone()
            };
            match pipe.data.len() {
                0 => name,
                length => format!("{name}, {length} bytes in it"),
            }
        }
        Some(Kind::Eventfd(eventfd)) => format!("count {}", eventfd.count),
        Some(Kind::Epoll(epoll)) => {
            let watched: Vec<String> = epoll.items.iter().map(|item| item.fd.to_string()).collect();
            if watched.is_empty() {
                "watches nothing".to_owned()
            } else {
                format!("watches {}", watched.join(", "))
            }
        }
        Some(Kind::Terminal(terminal)) => {
            format!("{}, the one the job was started on", terminal.path)
        }
        Some(Kind::Pty(pty)) => format!(
            "{} of /dev/pts/{}",
            if pty.master { "master" } else { "slave" },
            pty.index
        ),
        Some(Kind::Outer(outer)) => {
            let stream = match outer.fd {
                0 => "input",
                1 => "output",
                _ => "error",
            };
            format!(
                "{}, becomes the standard {stream} of `ckptd restore`",
                outer.what
            )
        }
        Some(Kind::Timerfd(timer)) if timer.remaining == 0 => "not set".to_owned(),
        Some(Kind::Timerfd(timer)) => format!("{} ms left", timer.remaining / 1_000_000),
        Some(Kind::Signalfd(signalfd)) => format!("signals {:#x}", signalfd.mask),
        Some(Kind::Pidfd(pidfd)) if pidfd.pid == 0 => "a process that has ended".to_owned(),
        Some(Kind::Pidfd(pidfd)) => format!("process {}", pidfd.pid),
        Some(Kind::Inotify(inotify)) => {
            let paths = inotify.watches.iter().map(|watch| watch.path.as_str());
            format!("watches {}", paths.collect::<Vec<_>>().join(", "))
        }
        Some(Kind::Path(path)) => path.path.clone(),
        Some(Kind::Object(object)) => {
            format!("object {} at byte {}", object.object, object.offset)
        }
        Some(Kind::Unix(socket)) => {
            let name = String::from_utf8_lossy(&socket.name).replace('\0', "@");
            let waiting: usize = socket.queue.iter().map(|m| m.data.len()).sum();
            let state = if socket.listening {
                "listens"
            } else {
                "socket"
            };
            let text = format!("{state} {name}").trim_end().to_owned();
            match waiting {
                0 => text,
                bytes => format!("{text}, {bytes} bytes in it"),
            }
        }
        Some(Kind::Tcp(socket)) if socket.listening => "listens".to_owned(),
        Some(Kind::Tcp(socket)) if socket.other != 0 => "connected within the job".to_owned(),
        Some(Kind::Tcp(socket)) if socket.outside.is_some() => {
            "connected to outside of the job".to_owned()
        }
        Some(Kind::Tcp(_)) => "not connected".to_owned(),
        Some(Kind::Datagram(socket)) if socket.peer.is_empty() => "not connected".to_owned(),
        Some(Kind::Datagram(_)) => "connected".to_owned(),
        Some(Kind::PosixQueue(queue)) => match queue.messages.len() {
            0 => format!("/{}", queue.name),
            count => format!("/{}, {count} messages in it", queue.name),
        },
        None => "a kind that this version does not know".to_owned(),
    }
}

/// How it is open: "read", "write append", ...
pub(crate) fn access(flags: u32) -> String {
    let flags = flags as i32;
    let mode = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => "read",
        libc::O_WRONLY => "write",
        _ => "read write",
    };
    let named = [
        (libc::O_APPEND, " append"),
        (libc::O_NONBLOCK, " nonblocking"),
        (libc::O_PATH, " path"),
    ];
    let more: String = named
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    mode.to_owned() + &more
}

/// As /proc/PID/maps shows it: "rw-p".
pub(crate) fn protection(prot: u32, kind: mapping::Kind) -> String {
    let bit = |flag: i32, letter| if prot & flag as u32 != 0 { letter } else { '-' };
    let shared = matches!(
        kind,
        mapping::Kind::FileShared | mapping::Kind::AnonymousShared
    );
    let letters = [
        bit(libc::PROT_READ, 'r'),
        bit(libc::PROT_WRITE, 'w'),
        bit(libc::PROT_EXEC, 'x'),
    ];
    letters
        .iter()
        .chain([if shared { &'s' } else { &'p' }])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protections_read_as_in_maps() {
        assert_eq!(protection(3, mapping::Kind::Anonymous), "rw-p");
        assert_eq!(protection(5, mapping::Kind::FileShared), "r-xs");
    }

    #[test]
    fn access_is_in_words() {
        assert_eq!(
            access((libc::O_WRONLY | libc::O_APPEND) as u32),
            "write append"
        );
        assert_eq!(access(libc::O_RDWR as u32), "read write");
    }
}
