//! Supervising a job that is not ckptd's child: one that has outlived the ckptd that started it.
//!
//! The job runs on whatever becomes of us, so signals end us and do not reach it. How its root ends nobody is told but its parent.

use super::control::Control;
use super::protocol::Request;
use super::taker::{Schedule, Taker};
use super::{Signals, say_goodbye};
use crate::failure::Failure;
use crate::lazy::Serving;
use crate::output::tell;
use crate::registry::Claim;
use crate::take::Target;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

/// Until the job's root ends, or a signal ends us.
pub(crate) fn attach(
    claim: Claim,
    signals: &Signals,
    schedule: Schedule,
) -> Result<ExitCode, Failure> {
    let state = claim.state();
    let ended = || Failure::new(format!("job {:?} has just ended", state.name));
    let root = state.live_root().ok_or_else(ended)?.pid;
    let watched = open(root).ok_or_else(ended)?;
    let socket = state.socket();
    // What its last supervisor has left there leads nowhere.
    let _ = std::fs::remove_file(&socket);
    let mut control = Control::listen(&socket)?;
    let serving = Serving::resume(&state.entry)?;
    // Orphans go to whoever adopts those of the machine; the kernel tells of those that come from now on.
    let target = match state.init.filter(|init| init.is_alive()) {
        Some(init) => Target::supervised(root, init.pid, root),
        None => Target::tree(root),
    };
    let memory = serving.as_ref().map(Serving::pages);
    let taker = Taker::start(&claim, target, schedule, None, memory);
    tell(&format!(
        "ckptd: {} is supervised again, process {root}\n",
        state.name
    ));
    loop {
        if is_ready(&[watched.as_fd()], PollTimeout::ZERO) {
            break;
        }
        let waits = [watched.as_fd(), signals.as_fd()];
        let waits: Vec<_> = waits.into_iter().chain(control.descriptors()).collect();
        is_ready(&waits, PollTimeout::NONE);
        drop(waits);
        while let Some(received) = signals.next() {
            if matches!(
                received.signal,
                libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT
            ) {
                // What is under way ends with us; the job runs on.
                tell(&format!("ckptd: {} runs on\n", claim.state().name));
                claim.leave();
                return Ok(ExitCode::SUCCESS);
            }
        }
        for (Request::Checkpoint(order), answer) in control.requests() {
            taker.request(order, answer);
        }
    }
    drop(serving);
    match taker.finish() {
        Some(report) => say_goodbye(&report),
        None => tell(&format!("ckptd: {} has ended\n", claim.state().name)),
    }
    Ok(ExitCode::SUCCESS)
}

fn open(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Whether there is something to read from one of these, or an end to hear of.
fn is_ready(descriptors: &[std::os::fd::BorrowedFd<'_>], timeout: PollTimeout) -> bool {
    let mut descriptors: Vec<_> = descriptors
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    poll(&mut descriptors, timeout).is_ok_and(|ready| ready > 0)
}
