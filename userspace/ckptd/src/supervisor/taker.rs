//! The supervisor's thread that takes checkpoints, when a client asks and by the clock. The supervisor itself goes on passing
//! signals meanwhile.

use super::control::Answer;
use super::protocol::Reply;
use super::watch::Watch;
use crate::bpf::{Bpf, TrackArgs};
use crate::failure::Failure;
use crate::lazy::Pages;
use crate::registry::Claim;
use crate::report::Report;
use crate::take::{self, Order, Target};
use crate::upkeep::Upkeep;
use engine::{Silent, Tracking};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What `run` and `restore` say of later checkpoints.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    /// How they are taken when it is time.
    pub order: Order,
    /// How often; only on request without it.
    pub every: Option<Duration>,
    /// Which are kept when the clock has added one.
    pub keep: images::Keep,
    /// How the job is followed.
    pub track: TrackArgs,
}

/// Between two looks whether a lazily restored job has all of its memory.
const LOOK: Duration = Duration::from_millis(200);

/// The thread, from the supervisor's side.
pub(crate) struct Taker {
    requests: Sender<(Order, Answer)>,
    thread: JoinHandle<Option<Report>>,
    busy: Arc<Mutex<()>>,
}

impl Taker {
    /// Starts the thread. `tracking` goes on where a restore has left it; `memory` is that of a job that may lack some of it.
    pub(crate) fn start(
        claim: &Claim,
        target: Target,
        schedule: Schedule,
        tracking: Option<Tracking>,
        memory: Option<Pages>,
    ) -> Self {
        let name = claim.state().name.clone();
        let (requests, inbox) = mpsc::channel();
        let busy = Arc::new(Mutex::new(()));
        let work = Work {
            busy: Arc::clone(&busy),
            bpf: Bpf::in_background(schedule.order.no_bpf, schedule.track),
            watch: Watch::new(&name, target, claim.path(), &schedule),
            name,
            target,
            schedule,
            tracking,
            memory,
            upkeep: Upkeep::default(),
            huge_pages: None,
            warned: false,
        };
        Self {
            requests,
            thread: std::thread::spawn(move || work.run(&inbox)),
            busy,
        }
    }

    /// Runs `wait` unless a checkpoint is being taken; SIGCHLD comes when it is done. A wait for children would take away the stops of
    /// those that the thread traces (kernel/exit.c, wait_consider_task: being traced by a thread of the parent's counts as by the parent).
    pub(crate) fn unless_busy<T>(&self, wait: impl FnOnce() -> Option<T>) -> Option<T> {
        let _guard = self.busy.try_lock().ok()?;
        wait()
    }

    /// Has a checkpoint taken, after those that are asked for already.
    pub(crate) fn request(&self, order: Order, answer: Answer) {
        if let Err(mpsc::SendError((_, answer))) = self.requests.send((order, answer)) {
            answer.finish(&Reply::Failed(Failure::new("the supervisor is ending")));
        }
    }

    /// Waits until what is under way is done. Returns the checkpoint after which the job was killed.
    pub(crate) fn finish(self) -> Option<Report> {
        drop(self.requests);
        self.thread.join().unwrap_or_default()
    }
}

struct Work {
    busy: Arc<Mutex<()>>,
    bpf: Arc<Bpf>,
    watch: Watch,
    name: String,
    target: Target,
    schedule: Schedule,
    tracking: Option<Tracking>,
    memory: Option<Pages>,
    upkeep: Upkeep,
    /// When to look after huge pages next, and how long to wait after that.
    huge_pages: Option<(Instant, Duration)>,
    /// The user knows that written pages cannot be told.
    warned: bool,
}

impl Work {
    fn run(mut self, inbox: &Receiver<(Order, Answer)>) -> Option<Report> {
        let mut due = self.schedule.every.map(|every| Instant::now() + every);
        loop {
            let huge_pages = self.huge_pages.map(|(due, _)| due);
            // While memory is coming in, somebody has to see when all of it is in.
            let memory = self.memory.as_ref().filter(|memory| memory.are_watched());
            let look = memory.map(|_| Instant::now() + LOOK);
            let times = [due, huge_pages, look].into_iter().flatten();
            let next = times.fold(self.watch.next, Instant::min);
            let has_come = |time: Option<Instant>| time.is_some_and(|time| time <= Instant::now());
            let request = inbox.recv_timeout(next.saturating_duration_since(Instant::now()));
            if has_come(look) {
                self.take_over();
            }
            match request {
                Ok((mut order, answer)) => {
                    order.no_bpf |= self.schedule.order.no_bpf && !order.bpf;
                    // A whole one would take the marks of our write tracking for the job's own.
                    order.incremental |= self.schedule.order.incremental || self.tracking.is_some();
                    match self.take(&order, &answer) {
                        Ok(report) => {
                            self.tidy(&order, images::Keep::default());
                            answer.finish(&Reply::Done(report.clone()));
                            if order.kill {
                                return Some(report);
                            }
                        }
                        Err(failure) => answer.finish(&Reply::Failed(failure)),
                    }
                }
                Err(RecvTimeoutError::Timeout) if !has_come(due) && !has_come(huge_pages) => {
                    self.watch.look(&self.bpf);
                }
                Err(RecvTimeoutError::Timeout)
                    if due.is_none_or(|due| huge_pages.is_some_and(|huge| huge < due)) =>
                {
                    self.restore_huge_pages();
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.on_time();
                    // Counted from its end: a checkpoint that takes longer than that must not follow itself.
                    due = self.schedule.every.map(|every| Instant::now() + every);
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn take(&mut self, order: &Order, progress: &dyn engine::Progress) -> Result<Report, Failure> {
        let since = Instant::now();
        // Where it is not watched, a checkpoint is taken of a job that has all of its memory.
        if let Some(memory) = self.memory.take_if(|memory| !memory.are_watched()) {
            progress.phase("memory");
            memory.wait_for_end();
        }
        if order.incremental && self.tracking.is_none() {
            match Tracking::new() {
                Ok(tracking) => self.tracking = Some(tracking),
                Err(why) if !self.warned => {
                    self.warned = true;
                    crate::output::tell(&format!(
                        "ckptd: checkpoints of {} are whole: {why}\n",
                        self.name
                    ));
                }
                Err(_) => {}
            }
        }
        let tracking = self.tracking.as_mut().filter(|_| order.incremental);
        let guard = self.busy.lock();
        let taken = take::take(
            since,
            &self.name,
            order,
            self.target,
            tracking,
            &self.bpf,
            progress,
        );
        drop(guard);
        let first = Duration::from_secs(1);
        self.huge_pages = Some((Instant::now() + first, first));
        // Children may have ended meanwhile.
        let _ = kill(getpid(), Signal::SIGCHLD);
        taken
    }

    /// Gives the job back the huge pages that the last checkpoint has taken apart. It must have written to all of each: the longer that takes,
    /// the less is won.
    fn restore_huge_pages(&mut self) {
        let left = (self.tracking.as_ref()).is_some_and(Tracking::restore_huge_pages);
        self.huge_pages = self.huge_pages.filter(|_| left).map(|(_, waited)| {
            let wait = waited * 2;
            (Instant::now() + wait, wait)
        });
    }

    /// Ends the lazy restore when all memory is in.
    fn take_over(&mut self) {
        let Some(tracking) = &mut self.tracking else {
            return;
        };
        let _guard = self.busy.lock();
        match tracking.take_over(self.target.scope) {
            Ok(true) => self.memory = None,
            Ok(false) => {}
            Err(error) => tracing::debug!("{error}"),
        }
        // Children may have ended meanwhile.
        let _ = kill(getpid(), Signal::SIGCHLD);
    }

    fn on_time(&mut self) {
        let order = self.schedule.order.clone();
        match self.take(&order, &Silent) {
            Ok(_) => self.tidy(&order, self.schedule.keep),
            // Of a job that has just ended there is nothing to say.
            Err(failure) if crate::process::name(self.target.root()).is_some() => {
                failure.print(false);
            }
            Err(_) => {}
        }
    }

    /// Has old checkpoints and dead pages removed, beside what comes next.
    fn tidy(&mut self, order: &Order, keep: images::Keep) {
        let job = images::Store::open(&order.dir).and_then(|store| store.job(&self.name));
        // The page server reads the checkpoint that the job was restored from.
        if let Ok(job) = job
            && self.memory.is_none()
            && (order.incremental || !keep.all())
        {
            self.upkeep.begin(job, keep);
        }
    }
}
