//! The supervisor of one job: what `ckptd run` is, and `ckptd restore` becomes.
//!
//! It is the parent of the job's root and adopts the job's orphans, passes signals on, stops and ends as the root
//! does. A second thread takes checkpoints, so that signals are passed on meanwhile. Nothing of it is inside the
//! job: when it is killed, the job runs on.

mod attached;
mod control;
mod ended;
pub(crate) mod protocol;
mod signals;
mod spawn;
pub(crate) mod status;
mod taker;
mod watch;

pub(crate) use attached::attach;
pub(crate) use ended::Ended;
pub(crate) use signals::Signals;
pub(crate) use spawn::{spawn, spawn_self};
pub(crate) use taker::Schedule;
pub(crate) use watch::Watched;

use crate::failure::Failure;
use crate::lazy::Serving;
use crate::process::{self, ProcessId};
use crate::registry::Claim;
use crate::report::Report;
use crate::take::Target;
use control::Control;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protocol::Request;
use rustix::process::WaitOptions;
use signals::Surroundings;
use status::{Fifo, News};
use std::os::fd::AsFd;
use taker::Taker;

/// What must be ready before the job starts.
pub(crate) struct Post {
    claim: Claim,
    control: Control,
    fifo: Fifo,
}

impl Post {
    /// Makes ckptd the adopter of orphans and the socket that clients connect to.
    pub(crate) fn prepare(claim: Claim) -> Result<Self, Failure> {
        nix::sys::prctl::set_child_subreaper(true).map_err(|errno| {
            Failure::because("cannot become the adopter of the job's orphans", errno)
        })?;
        let control = Control::listen(&claim.path().join("control.sock"))?;
        let fifo = Fifo::create(&Self::status_path(&claim))?;
        Ok(Self {
            claim,
            control,
            fifo,
        })
    }

    /// Where an init reports the root's status.
    pub(crate) fn status_path(claim: &Claim) -> std::path::PathBuf {
        claim.path().join("status")
    }

    /// Supervises the job until its root ends. `init` is the init of the job's own pid namespace, `tracking` what a restore
    /// knows of the job's memory; `serving` brings in the rest of it.
    pub(crate) fn supervise(
        mut self,
        signals: Signals,
        (root, init): (u32, Option<u32>),
        schedule: Schedule,
        tracking: Option<engine::Tracking>,
        serving: Option<Serving>,
    ) -> Ended {
        // The job runs already: without an entry it can be checkpointed by --pid only, but that is no reason to end it.
        if let Err(failure) = self.claim.set_running(root, init) {
            failure.print(false);
        }
        let state = self.claim.state();
        let root_id = state.root;
        let ours = std::process::id();
        let target = Target::supervised(root, init.unwrap_or(ours), ours);
        let memory = serving.as_ref().map(Serving::pages);
        let taker = Taker::start(&self.claim, target, schedule, tracking, memory);
        let mut supervisor = Supervisor {
            post: self,
            signals,
            root,
            root_id,
            init,
            last: None,
        };
        let ended = supervisor.work(&taker);
        drop(serving);
        if let Some(report) = taker.finish() {
            say_goodbye(&report);
        }
        ended
    }
}

struct Supervisor {
    post: Post,
    signals: Signals,
    root: u32,
    root_id: Option<ProcessId>,
    init: Option<u32>,
    /// What the init last said of the root's end.
    last: Option<Ended>,
}

impl Supervisor {
    fn work(&mut self, taker: &Taker) -> Ended {
        loop {
            let reaped = taker.unless_busy(|| self.reap());
            if let Some(ended) = reaped.or_else(|| self.hear_init()) {
                return ended;
            }
            self.wait();
            while let Some(received) = self.signals.next() {
                if received.is_for_root(self) {
                    signals::send(self.root, received.signal);
                }
            }
            for (Request::Checkpoint(order), answer) in self.post.control.requests() {
                taker.request(order, answer);
            }
        }
    }

    /// Until there is something to do.
    fn wait(&self) {
        let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
        let fifo = PollFd::new(self.post.fifo.as_fd(), PollFlags::POLLIN);
        let control = self
            .post
            .control
            .descriptors()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let mut descriptors: Vec<PollFd<'_>> = [signals, fifo].into_iter().chain(control).collect();
        // Every signal is blocked, so nothing interrupts it; and if something did, one more turn does no harm.
        let _ = poll(&mut descriptors, PollTimeout::NONE);
    }

    /// Takes note of every child that has ended or stopped, adopted ones too.
    fn reap(&mut self) -> Option<Ended> {
        let watched = self.init.unwrap_or(self.root);
        while let Ok(Some((pid, status))) =
            rustix::process::wait(WaitOptions::NOHANG | WaitOptions::UNTRACED)
        {
            if pid.as_raw_nonzero().get().unsigned_abs() != watched {
                continue;
            }
            if let Some(ended) = Ended::from_status(status) {
                if self.init.is_none() {
                    return Some(ended);
                }
                // Its last words may not be read yet; when it had none, the whole namespace was killed with it.
                return Some(
                    self.hear_init()
                        .unwrap_or(Ended::Killed(nix::libc::SIGKILL)),
                );
            }
            if let (None, Some(signal)) = (self.init, status.stopping_signal()) {
                signals::stop_like(signal);
                self.hand_over_terminal();
            }
        }
        None
    }

    /// What the init of the job's namespace says of the root.
    fn hear_init(&mut self) -> Option<Ended> {
        for news in self.post.fifo.news() {
            match news {
                News::Ended(ended) => self.last = Some(ended),
                News::Stopped(signal) => {
                    signals::stop_like(signal);
                    self.hand_over_terminal();
                }
                News::Continued => {}
            }
        }
        self.last
    }

    /// A shell that continues us brings our group into the foreground; the root may lead one of its own.
    fn hand_over_terminal(&self) {
        use nix::unistd::{Pid, getpgid, getpgrp, getsid, tcgetpgrp, tcsetpgrp};
        let root = i32::try_from(self.root).ok().map(Pid::from_raw);
        let terminal = std::io::stdin();
        if let Ok(group) = getpgid(root)
            && group != getpgrp()
            && getsid(root) == getsid(None)
            && tcgetpgrp(&terminal) == Ok(getpgrp())
        {
            let _ = tcsetpgrp(&terminal, group);
        }
    }
}

/// After the whole job was killed on its checkpoint: its pids are free for a restore only once everybody has been waited for.
fn say_goodbye(report: &Report) {
    while rustix::process::wait(WaitOptions::empty()).is_ok() {}
    crate::output::tell(&format!(
        "ckptd: job {} checkpointed as {} and stopped; go on with: ckptd restore --dir {} {}\n",
        report.job,
        report.sequence,
        crate::output::command_line(&[report.dir.to_string_lossy()]),
        report.job
    ));
}

impl Surroundings for Supervisor {
    fn leads_session(&self) -> bool {
        nix::unistd::getsid(None).is_ok_and(|leader| leader == nix::unistd::getpid())
    }

    fn is_ours(&self, pid: u32) -> bool {
        process::descends_from(pid, std::process::id())
    }

    fn root_is_stopped(&self) -> bool {
        self.root_id.is_some_and(ProcessId::is_stopped)
    }
}
