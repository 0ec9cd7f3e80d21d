//! Deaths and failures at the named moments of a checkpoint, for tests; in release builds there are none.

use crate::CheckpointError;

/// The file that `CKPTD_TEST_FAULT` names says `kill MOMENT` or `fail MOMENT`. When that comes, the file goes, and so does ckptd, or the
/// checkpoint fails. `scenarios/memory.rs` knows the moments.
#[cfg(debug_assertions)]
pub(crate) fn at(moment: &str) -> Result<(), CheckpointError> {
    let Some(path) = std::env::var_os("CKPTD_TEST_FAULT") else {
        return Ok(());
    };
    let told = std::fs::read_to_string(&path).unwrap_or_default();
    match told.split_once(' ') {
        Some((what, when)) if when == moment => {
            let _ = std::fs::remove_file(&path);
            if what == "kill" {
                let _ = remote::sys::kill(std::process::id() as i32, libc::SIGKILL);
            }
            Err(CheckpointError::System {
                doing: format!("failing as told ({moment})"),
                source: std::io::ErrorKind::Other.into(),
            })
        }
        _ => Ok(()),
    }
}

#[cfg(not(debug_assertions))]
#[allow(clippy::unnecessary_wraps)] // As the other.
pub(crate) fn at(_: &str) -> Result<(), CheckpointError> {
    Ok(())
}
