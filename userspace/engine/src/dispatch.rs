//! PR_SET_SYSCALL_USER_DISPATCH: system calls that a thread sends to itself, as signals. Like seccomp(2), it would also meet the calls that we
//! make in a thread's place.

use images::proto::UserDispatch;
use remote::Stopped;
use remote::confinement::{Dispatch, SUSPEND_SECCOMP};

use crate::procfs::Status;
use crate::{CheckpointError, Refusal, freeze};

/// Where the system calls of a stopped thread go.
pub(crate) fn capture(thread: &freeze::Thread) -> Option<UserDispatch> {
    let now = || thread.task.as_ref().and_then(Stopped::dispatch);
    thread.dispatch.or_else(now).map(|dispatch| UserDispatch {
        mode: dispatch.mode,
        selector: dispatch.selector,
        offset: dispatch.offset,
        length: dispatch.length,
    })
}

/// As ptrace(2) sets it, last of all.
pub(crate) fn restored(dispatch: &UserDispatch) -> Dispatch {
    Dispatch {
        mode: dispatch.mode,
        selector: dispatch.selector,
        offset: dispatch.offset,
        length: dispatch.length,
    }
}

/// Lets the threads of a stopped process make any system call for us. Should we die, filters are in force again at once; the dispatch of a
/// thread to which the stub is lent at that moment is not.
pub(crate) fn lift(process: &mut freeze::Process, status: &Status) -> Result<(), CheckpointError> {
    let (pid, options) = (process.pid, process.options);
    for thread in process.threads.values_mut() {
        let task = thread.task()?;
        // Who may not do this may not read filters either; without a filter there is no need to.
        let lifted = task.set_options(options | SUSPEND_SECCOMP);
        if let Err(error) = lifted
            && status.number("Seccomp") != 0
        {
            return Err(CheckpointError::Refused(vec![Refusal {
                pid,
                what: "its seccomp filter".to_owned(),
                why: format!(
                    "it cannot be suspended while we ask the process about itself: {error}"
                ),
                advice: "checkpoint as root (CAP_SYS_ADMIN), and not inside a sandbox".to_owned(),
            }]));
        }
        let Some(dispatch) = task.dispatch() else {
            continue;
        };
        task.set_dispatch(&Dispatch::default())
            .map_err(freeze::failed(format!(
                "making system calls in the place of process {pid}"
            )))?;
        thread.dispatch = Some(dispatch);
    }
    Ok(())
}
