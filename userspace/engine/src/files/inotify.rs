//! inotify(7): what is watched, under the numbers it had. Events that wait to be read cannot be put back.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use images::proto::open_file::Kind;
use images::proto::{Inotify, OpenFile, Process, Watch};
use remote::sys;

use super::{Held, Making, Shell, Why};

/// What inotify_add_watch(2) takes of the mask that the kernel shows: events, IN_EXCL_UNLINK, IN_ONESHOT.
const MASK: u32 = 0xfff | 0x0400_0000 | 0x8000_0000;
const IN_DONT_FOLLOW: u32 = 0x0200_0000;
const IN_MASK_CREATE: u32 = 0x1000_0000;
/// Each number below a watch's own costs a few calls.
const MOST: i32 = 4096;
/// Removed watches whose events fit a queue comfortably (max_queued_events is 16384).
const ROUND: usize = 100;

pub(crate) fn capture(held: &Held) -> Result<Kind, Why> {
    let again = || "try again in a moment".to_owned();
    match sys::bytes_waiting(&held.file) {
        Ok(0) => {}
        Ok(_) => {
            let why = "it has events that have not been read yet, which cannot be put back";
            return Err((why.to_owned(), again()));
        }
        Err(error) => return Err((format!("it cannot be looked at: {error}"), again())),
    }
    let mut watches = Vec::new();
    for line in held.info.lines().filter(|l| l.starts_with("inotify ")) {
        let parsed = parse(line).ok_or_else(|| {
            let why = format!("the kernel's description of a watch is not understood: {line}");
            (why, "report this kernel".to_owned())
        })?;
        let path = parsed.path(held.pid).ok_or_else(|| {
            let why = format!(
                "no name is known for what it watches (watch {}, inode {})",
                parsed.wd, parsed.inode
            );
            (why, "checkpoint when nothing deleted is watched".to_owned())
        })?;
        if parsed.wd > MOST {
            let why = format!("its watch {} has too high a number", parsed.wd);
            return Err((why, "report this program".to_owned()));
        }
        watches.push(Watch {
            wd: parsed.wd as u32,
            path,
            mask: parsed.mask & MASK,
        });
    }
    watches.sort_by_key(|watch| watch.wd);
    Ok(Kind::Inotify(Inotify { watches }))
}

#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    wd: i32,
    inode: u64,
    device: (u64, u64),
    mask: u32,
    handle_type: i32,
    handle: Vec<u8>,
}

/// fs/notify/fdinfo.c, inotify_fdinfo.
fn parse(line: &str) -> Option<Parsed> {
    let text = |name: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix(':'))
    };
    let hex = |name: &str| u64::from_str_radix(text(name)?, 16).ok();
    let device = hex("sdev")?;
    let digits = text("f_handle")?.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    Some(Parsed {
        wd: hex("wd")? as i32,
        inode: hex("ino")?,
        // The kernel's own dev_t: twenty bits of minor number.
        device: (device >> 20, device & 0xf_ffff),
        mask: hex("mask")? as u32,
        handle_type: hex("fhandle-type")? as i32,
        handle: digits.chunks(2).map(byte).collect::<Option<_>>()?,
    })
}

impl Parsed {
    /// A path that leads to what is watched.
    fn path(&self, pid: u32) -> Option<String> {
        let mounts = sys::read_text(format!("/proc/{pid}/mountinfo")).ok()?;
        let device = format!("{}:{}", self.device.0, self.device.1);
        let points = mounts.lines().filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words.get(2) == Some(&device.as_str())).then(|| words.get(4).copied())?
        });
        points
            .map(|point| point.replace("\\040", " ").replace("\\011", "\t"))
            .find_map(|point| {
                let mount = File::open(point).ok()?;
                let found = sys::open_by_handle(&mount, self.handle_type, &self.handle).ok()?;
                let path = sys::path_of(&found).ok()?;
                let meta = std::fs::symlink_metadata(&path).ok()?;
                (meta.ino() == self.inode).then_some(path)
            })
    }
}

pub(crate) fn open(shell: &mut Shell, flags: u32) -> u32 {
    let flags = flags as i32 & libc::O_NONBLOCK;
    shell.open(libc::SYS_inotify_init1, &[flags.into()], "make an inotify")
}

/// Adds the watches of what `process` has made, when nothing is opened or changed any more that they could notice.
pub(crate) fn watch(shell: &mut Shell, making: &Making<'_>, process: &Process) {
    for (fd, file) in making.made_in_place(process) {
        let Some(Kind::Inotify(inotify)) = &file.kind else {
            continue;
        };
        let mut next = 1;
        let mut removed = 0;
        for watch in &inotify.watches {
            let path = shell.program.string(&watch.path);
            let add = |shell: &mut Shell, number: u32, mask: u32| {
                let mask = mask | IN_DONT_FOLLOW;
                shell.program.call(
                    libc::SYS_inotify_add_watch,
                    &[fd.into(), path.into(), mask.into()],
                    remote::Expect::Exactly(u64::from(number)),
                    format!("watch {} as {number}", watch.path),
                );
            };
            // Numbers count up, also when the one before is free again (fs/notify/inotify/inotify_user.c, inotify_add_to_idr).
            for skipped in next..watch.wd {
                add(shell, skipped, libc::IN_DELETE_SELF | IN_MASK_CREATE);
                let args = [fd.into(), skipped.into()];
                let label = format!("give up number {skipped}");
                shell.program.must(libc::SYS_inotify_rm_watch, &args, label);
                removed += 1;
                if removed % ROUND == 0 {
                    forget(shell, fd, file);
                }
            }
            add(shell, watch.wd, watch.mask);
            next = watch.wd + 1;
        }
        if removed % ROUND != 0 {
            forget(shell, fd, file);
        }
    }
}

/// Reads the events about watches that were removed.
fn forget(shell: &mut Shell, fd: u32, file: &OpenFile) {
    const EVENT: usize = 16;
    let flags = |shell: &mut Shell, flags: u32| {
        shell.fcntl(fd, libc::F_SETFL, u64::from(flags), "set its flags");
    };
    flags(shell, libc::O_NONBLOCK as u32);
    let buffer = shell.program.output(ROUND * EVENT);
    let args = [fd.into(), buffer.into(), (ROUND * EVENT).into()];
    let label = "forget what that has caused";
    shell.program.must(libc::SYS_read, &args, label);
    flags(shell, file.flags & super::STATUS_FLAGS);
}

#[cfg(test)]
mod tests {
    #[test]
    fn fdinfo() {
        let line = "inotify wd:fd ino:98c193 sdev:fe00000 mask:80000fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:93c19800ad1e356c";
        let parsed = super::parse(line).unwrap();
        assert_eq!((parsed.wd, parsed.inode), (253, 0x98_c193));
        assert_eq!((parsed.device, parsed.handle_type), ((0xfe, 0), 1));
        assert_eq!(parsed.handle.len(), 8);
    }
}
