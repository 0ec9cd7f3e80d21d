//! File locks: flock(2), those of processes and of open files (fcntl(2)), and leases.

use images::proto::lock::Kind;
use images::proto::{Lock, Process};

use super::{Making, Shell, Why};

// include/uapi/asm-generic/fcntl.h, include/uapi/linux/fcntl.h
const F_SETLK: i32 = 6;
const F_OFD_SETLK: i32 = 37;
const F_SETLEASE: i32 = 1024;

/// The locks that /proc/PID/fdinfo/N shows: of the process, then of the open file (fs/locks.c, lock_get_status).
pub(crate) fn parse(info: &str) -> Result<(Vec<Lock>, Vec<Lock>), Why> {
    let (mut of_process, mut of_file) = (Vec::new(), Vec::new());
    for line in info.lines().filter_map(|l| l.strip_prefix("lock:")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[_, kind, state, how, _, _, start, end] = words.as_slice() else {
            return Err(unknown(line));
        };
        let kind = match (kind, state) {
            ("FLOCK", "ADVISORY") => Kind::Flock,
            ("POSIX", "ADVISORY") => Kind::Process,
            ("OFDLCK", "ADVISORY") => Kind::File,
            ("LEASE", "ACTIVE") => Kind::Lease,
            ("LEASE", "BREAKING") => {
                let why = "somebody waits for it to give up its lease".to_owned();
                return Err((why, "try again in a moment".to_owned()));
            }
            _ => return Err(unknown(line)),
        };
        let write = match how {
            "WRITE" => true,
            "READ" => false,
            _ => return Err(unknown(line)),
        };
        let start = start.parse().map_err(|_| unknown(line))?;
        // The last byte; 0 bytes reach to the end of the file, however far it grows.
        let length = match end.parse::<u64>() {
            Ok(end) => end.saturating_sub(start).saturating_add(1),
            Err(_) => 0,
        };
        let mut lock = Lock {
            write,
            start,
            length,
            ..Default::default()
        };
        lock.set_kind(kind);
        if kind == Kind::Process {
            of_process.push(lock);
        } else {
            of_file.push(lock);
        }
    }
    Ok((of_process, of_file))
}

fn unknown(line: &str) -> Why {
    let why = format!("it holds a lock of a kind that is not supported:{line}");
    (why, "checkpoint when it is not held".to_owned())
}

/// Takes the locks of a process and of the files it has made, when nobody opens or changes files any more.
pub(crate) fn take(shell: &mut Shell, making: &Making<'_>, process: &Process) {
    for descriptor in &process.descriptors {
        for lock in &descriptor.locks {
            one(shell, descriptor.fd, lock);
        }
    }
    for (fd, file) in making.made_in_place(process) {
        for lock in &file.locks {
            one(shell, fd, lock);
        }
    }
}

fn one(shell: &mut Shell, fd: u32, lock: &Lock) {
    let label = format!("lock descriptor {fd}, unless somebody else has by now");
    let kind = if lock.write {
        libc::F_WRLCK
    } else {
        libc::F_RDLCK
    };
    let command = match lock.kind() {
        Kind::Flock => {
            let how = if lock.write {
                libc::LOCK_EX
            } else {
                libc::LOCK_SH
            };
            let args = [fd.into(), (how | libc::LOCK_NB).into()];
            shell.program.must(libc::SYS_flock, &args, label);
            return;
        }
        Kind::Lease => return shell.fcntl(fd, F_SETLEASE, kind as u64, "take its lease"),
        Kind::Process => F_SETLK,
        Kind::File => F_OFD_SETLK,
    };
    // struct flock: type and whence (SEEK_SET), start, length, pid.
    let record = [kind as u64, lock.start, lock.length, 0];
    let record = shell.program.words(&record);
    let args = [fd.into(), command.into(), record.into()];
    shell.program.must(libc::SYS_fcntl, &args, label);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo() {
        let info = "pos:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 16832 fe:00:10011030 0 EOF\nlock:\t2: POSIX  ADVISORY  READ 16832 fe:00:10011030 5 14\n";
        let (of_process, of_file) = parse(info).unwrap();
        assert_eq!((of_file.len(), of_file[0].kind()), (1, Kind::Flock));
        assert!(of_file[0].write && of_file[0].length == 0);
        assert_eq!((of_process[0].start, of_process[0].length), (5, 10));
        assert!(parse("lock:\t1: LEASE  BREAKING  READ 1 fe:00:1 0 EOF\n").is_err());
    }
}
