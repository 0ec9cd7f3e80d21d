//! Checkpoints of a job whose memory is still coming in from the checkpoint that it was restored from.
//!
//! What is missing need not come for them: it lies where the base has it. Its mappings belong to the userfaultfd of the lazy restore,
//! through which pages go in write-protected, so that scans tell what was written as ever.

use std::io;
use std::ops::Range;
use std::time::Duration;

use memory::track::Written;
use memory::uffd::Userfault;
use memory::{Kind, PAGE_SIZE, Pagemap};

use super::{Space, Tracking};
use crate::freeze::{Frozen, failed};
use crate::{CheckpointError, Scope, areas};

/// Who brings in the memory of a job.
pub trait Incoming: Send {
    /// What is missing now. Of a job whose threads are stopped: nothing that they did to their memory is left out.
    ///
    /// # Errors
    /// Nobody is there to tell.
    fn missing(&self) -> io::Result<Missing>;
    /// Waits until every page is in, or the job has ended.
    fn wait(&self);
    /// Inodes of the sockets that the job's processes hold for our sake, which are no part of the job.
    fn sockets(&self) -> [u64; 2];
    /// Told when every page is in and nothing is watched for missing pages any more; comes back when nothing of it is left in the job.
    fn release(&self);
}

/// What of a job's memory is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// Nothing.
    pub nothing: bool,
    /// Something that belongs elsewhere by now: it was moved, or its process forked.
    pub elsewhere: bool,
    /// The processes that were restored, and are still there.
    pub processes: Vec<Incomplete>,
}

/// A process whose memory is coming in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// Its id.
    pub pid: u32,
    /// Where whatever is missing belongs where it was at the checkpoint.
    pub in_place: Vec<Range<u64>>,
    /// Where memory was moved to, write protection and all: scans do not tell of it.
    pub arrived: Vec<Range<u64>>,
}

/// Bytes that are handed over in one step: some milliseconds.
const STEP: u64 = 64 << 20;
/// How long the job stands still at a time for it.
const STOP: Duration = Duration::from_millis(8);

impl Tracking {
    /// Says that the memory of the job, restored from the base, is still coming in.
    pub fn expect(&mut self, incoming: Box<dyn Incoming>) {
        self.incoming = Some(incoming);
    }

    /// In a frozen job: notes what is missing where the base has it. False when not all that is missing is; after
    /// [`Tracking::await_memory`] it is.
    pub(crate) fn find_missing(&mut self) -> Result<bool, CheckpointError> {
        self.spaces
            .values_mut()
            .for_each(|space| space.missing.clear());
        let told = self.ask()?;
        if told.nothing || told.elsewhere {
            return Ok(told.nothing);
        }
        for Incomplete { pid, in_place, .. } in told.processes {
            let space = self.spaces.get_mut(&pid);
            let Some(space) = space.filter(|space| space.lazy.is_some()) else {
                return Ok(false);
            };
            space.note_missing(pid, &in_place)?;
        }
        Ok(true)
    }

    /// In a frozen job: asks what is missing, and notes what was moved as written.
    fn ask(&mut self) -> Result<Missing, CheckpointError> {
        let Some(incoming) = &self.incoming else {
            return Ok(Missing {
                nothing: true,
                ..Missing::default()
            });
        };
        let told = incoming.missing();
        let told = told.map_err(failed(
            "asking the page server which pages of the job are missing",
        ))?;
        for (pid, space) in &mut self.spaces {
            let told = told.processes.iter().find(|told| told.pid == *pid);
            match told.filter(|_| space.lazy.is_some()) {
                Some(told) => space.ledger.note(&Written {
                    whole: told.arrived.clone(),
                    ..Written::default()
                }),
                // A child has inherited the userfaultfd, and nobody says what it has moved.
                None => space.ledger.doubt(),
            }
        }
        Ok(told)
    }

    pub(crate) fn await_memory(&self) {
        if let Some(incoming) = &self.incoming {
            incoming.wait();
        }
    }

    /// Goes on alone once every page is in, and says whether it does. The job stands still for some milliseconds now and then, `STOP` at
    /// most but for what a freeze takes.
    ///
    /// # Errors
    /// The job cannot be stopped; nothing that was written is lost.
    pub fn take_over(&mut self, scope: Scope) -> Result<bool, CheckpointError> {
        let Some(incoming) = &self.incoming else {
            return Ok(true);
        };
        let told = incoming.missing();
        let told = told.map_err(failed("asking the page server how far it is"))?;
        if !told.nothing {
            return Ok(false);
        }
        // The lowest address of each that is still to be handed over.
        let mut rest: Vec<(u32, u64)> = self.spaces.keys().map(|pid| (*pid, 0)).collect();
        while !rest.is_empty() {
            let frozen = Frozen::freeze(scope, None)?;
            self.ask()?;
            while let Some((pid, from)) = rest.last_mut() {
                let space = self.spaces.get_mut(pid);
                match space.map_or(Ok(None), |space| space.hand_over(*pid, *from)) {
                    Ok(Some(next)) => *from = next,
                    // It has ended: the next checkpoint will tell.
                    Ok(None) | Err(_) => drop(rest.pop()),
                }
                if frozen.since.elapsed() > STOP {
                    break;
                }
            }
            let stopped = frozen.since;
            drop(frozen);
            std::thread::sleep(5 * stopped.elapsed().min(STOP));
        }
        for space in self.spaces.values_mut() {
            space.lazy = None;
        }
        if let Some(incoming) = self.incoming.take() {
            incoming.release();
        }
        Ok(true)
    }
}

impl Space {
    /// In a frozen job: hands some memory from address `from` on over from the userfaultfd of a lazy restore to that of the tracker. Gives
    /// where to go on; `None` when there is no more.
    fn hand_over(&mut self, pid: u32, from: u64) -> Result<Option<u64>, CheckpointError> {
        let Some(lazy) = self.lazy.take() else {
            return Ok(None);
        };
        let done = self.hand_to_tracker(&lazy, pid, from);
        self.lazy = Some(lazy);
        done
    }

    fn hand_to_tracker(
        &mut self,
        lazy: &Userfault,
        pid: u32,
        from: u64,
    ) -> Result<Option<u64>, CheckpointError> {
        let mut areas = areas::private(&areas::running(pid)?);
        areas.retain(|(area, kind)| area.end > from && self.tracker.covers(*kind));
        let mut left = STEP;
        for (area, kind) in areas {
            let start = area.start.max(from);
            let end = area.end.min(start + left);
            let part = start..end;
            self.collect(&[(part.clone(), kind)])?;
            self.tracker.take_over(&part, lazy)?;
            left -= end - start;
            if left == 0 {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    /// In a frozen job: notes the pages of the base that have yet to come in, and lie in `ranges`. Before anybody looks for what was
    /// written, as they go on coming in.
    fn note_missing(&mut self, pid: u32, ranges: &[Range<u64>]) -> Result<(), CheckpointError> {
        let pagemap = Pagemap::open(pid)?;
        let mut there = Vec::new();
        for range in ranges {
            let pages = range.start / PAGE_SIZE..range.end / PAGE_SIZE;
            self.missing.insert_range(pages);
            pagemap.content(range.clone(), Kind::Anonymous, &mut there)?;
        }
        for run in there {
            let pages = run.start / PAGE_SIZE..run.end / PAGE_SIZE;
            self.missing.remove_range(pages);
        }
        self.missing = self.ledger.present_among(&self.missing);
        Ok(())
    }
}
