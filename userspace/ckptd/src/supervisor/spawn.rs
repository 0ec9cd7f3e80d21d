//! Starting a program as if ckptd were not there.

use crate::failure::{Exit, Failure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::spawn::{
    PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn, posix_spawnp,
};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Starts `command`, found as a shell finds it, with the signal mask `mask` and everything else as ckptd got it.
pub(crate) fn spawn(command: &[OsString], mask: &SigSet) -> Result<u32, Failure> {
    let Some(program) = command.first() else {
        return Err(Failure::new("no command to run").exit(Exit::Usage));
    };
    let refuse = |errno: Errno| {
        let exit = if errno == Errno::ENOENT {
            Exit::NotFound
        } else {
            Exit::CannotExecute
        };
        let help = if errno == Errno::ENOENT {
            "is its name right, and its directory in $PATH?"
        } else {
            "is it executable, and a program for this machine?"
        };
        Failure::because(format!("cannot run {}", program.to_string_lossy()), errno)
            .exit(exit)
            .help(help)
    };
    let arguments = command
        .iter()
        .map(|word| c_string(word))
        .collect::<Result<Vec<_>, _>>()
        .map_err(refuse)?;
    let attributes = attributes(mask, None).map_err(refuse)?;
    let actions = PosixSpawnFileActions::init().map_err(refuse)?;
    let started = match posix_spawnp(
        &arguments[0],
        &actions,
        &attributes,
        &arguments,
        &environment(),
    ) {
        // A script without `#!`: shells and execvp(3) hand it to sh.
        Err(Errno::ENOEXEC) => {
            let script = locate(program)
                .ok_or(Errno::ENOEXEC)
                .and_then(|path| c_string(path.as_os_str()));
            let mut shell = vec![CString::from(c"/bin/sh"), script.map_err(refuse)?];
            shell.extend_from_slice(&arguments[1..]);
            posix_spawn(c"/bin/sh", &actions, &attributes, &shell, &environment())
        }
        other => other,
    };
    started
        .map(|pid| pid.as_raw().unsigned_abs())
        .map_err(refuse)
}

/// Starts ckptd itself in a process group of its own, with more descriptors: each of ours under the number given. With
/// `quiet` it has no standard input and output.
pub(crate) fn spawn_self(
    arguments: &[OsString],
    given: &[(RawFd, RawFd)],
    quiet: bool,
    mask: &SigSet,
) -> Result<u32, Failure> {
    let start = || {
        let arguments = arguments
            .iter()
            .map(|word| c_string(word))
            .collect::<Result<Vec<_>, _>>()?;
        let mut actions = PosixSpawnFileActions::init()?;
        for (fd, number) in given {
            actions.add_dup2(*fd, *number)?;
        }
        if quiet {
            for fd in 0..2 {
                actions.add_open(fd, "/dev/null", OFlag::O_RDWR, Mode::empty())?;
            }
        }
        let attributes = attributes(mask, Some(0))?;
        posix_spawn(
            "/proc/self/exe",
            &actions,
            &attributes,
            &arguments,
            &environment(),
        )
    };
    let started = start().map_err(|errno| Failure::because("cannot start ckptd anew", errno))?;
    Ok(started.as_raw().unsigned_abs())
}

fn attributes(mask: &SigSet, group: Option<i32>) -> Result<PosixSpawnAttr, Errno> {
    let mut attributes = PosixSpawnAttr::init()?;
    let mut flags =
        PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
    attributes.set_sigmask(mask)?;
    // Rust programs ignore it from the start; all other dispositions are as ckptd got them.
    if !engine::sigpipe_was_ignored() {
        attributes.set_sigdefault(&SigSet::from_iter([Signal::SIGPIPE]))?;
    }
    if let Some(group) = group {
        flags |= PosixSpawnFlags::POSIX_SPAWN_SETPGROUP;
        attributes.set_pgroup(nix::unistd::Pid::from_raw(group))?;
    }
    attributes.set_flags(flags)?;
    Ok(attributes)
}

fn c_string(word: &OsStr) -> Result<CString, Errno> {
    CString::new(word.as_bytes()).map_err(|_| Errno::EINVAL)
}

fn environment() -> Vec<CString> {
    let join = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        CString::new(name.into_vec()).ok()
    };
    std::env::vars_os().filter_map(join).collect()
}

/// The file that a shell would execute for `program`.
fn locate(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program));
    }
    let search = std::env::var_os("PATH")?;
    std::env::split_paths(&search)
        .map(|dir| dir.join(program))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}
