//! `restore --stage`: a store on storage that is nearer, which gets a copy of what is restored, for the next time.

use crate::output::tell;
use images::{Checkpoint, Error, Store};
use std::path::{Path, PathBuf};

/// The copy of a checkpoint that is there already. One that cannot be read is none.
pub(crate) fn find(dir: &Path, job: &str, checkpoint: &Checkpoint) -> Option<Checkpoint> {
    let staged = Store::open(dir).and_then(|store| store.job(job));
    let staged = staged.and_then(|job| job.checkpoint(Some(checkpoint.sequence())));
    staged.ok().filter(|staged| staged.is_copy_of(checkpoint))
}

/// Copies it, beside what else this process does; when that ends, what is half copied is no checkpoint.
pub(crate) fn copy(dir: PathBuf, job: String, checkpoint: Checkpoint) {
    let copy = move || {
        let copied: Result<(), Error> = Store::create(&dir)
            .and_then(|store| store.create_job(&job))
            .and_then(|job| checkpoint.copy_to(&job));
        if let Err(error) = copied {
            let dir = dir.display();
            tell(&format!("ckptd: nothing is staged to {dir}: {error}\n"));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("stage".into()).spawn(copy) {
        tell(&format!("ckptd: nothing is staged: {error}\n"));
    }
}
