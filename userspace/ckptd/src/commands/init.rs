//! `ckptd init`: process 1 of the pid namespace that a restored job gets when its pids are taken outside.
//!
//! It waits for everything, tells the supervisor what becomes of the root, and stays until the last process has
//! ended, because all others die with it.

use crate::cli::Init;
use crate::failure::Failure;
use crate::supervisor::Ended;
use crate::supervisor::status::{self, News};
use rustix::process::WaitOptions;
use std::io::Write;
use std::process::ExitCode;

/// Ends as the root has ended, once no process is left.
pub(crate) fn execute(args: &Init) -> Result<ExitCode, Failure> {
    // Without it the job runs on all the same, only that nobody hears how it ends.
    let mut fifo = status::open(&args.status).ok();
    let mut root_ended = None;
    let options = WaitOptions::UNTRACED | WaitOptions::CONTINUED;
    loop {
        let (pid, wait_status) = match rustix::process::wait(options) {
            Ok(Some((pid, wait_status))) => (pid, wait_status),
            Ok(None) | Err(rustix::io::Errno::INTR) => continue,
            Err(_) => break,
        };
        if pid.as_raw_nonzero().get().unsigned_abs() != args.root {
            continue;
        }
        let news = match (
            Ended::from_status(wait_status),
            wait_status.stopping_signal(),
        ) {
            (Some(ended), _) => {
                root_ended = Some(ended);
                News::Ended(ended)
            }
            (None, Some(signal)) => News::Stopped(signal),
            (None, None) => News::Continued,
        };
        if let Some(fifo) = &mut fifo {
            let _ = fifo.write_all(format!("{}\n", news.line()).as_bytes());
        }
    }
    match root_ended {
        Some(ended) => ended.mirror(),
        None => Ok(ExitCode::FAILURE),
    }
}
