//! Directories that were deleted while somebody works in them or has them open. They are empty, so that any other will do.

use std::path::Path;

use crate::files::Shell;

const DELETED: &str = " (deleted)";

/// Whether what /proc/PID/cwd or the like leads to was deleted.
pub(crate) fn is_deleted(link: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(link).is_ok_and(|meta| meta.is_dir() && meta.nlink() == 0)
}

/// A name for it, in the nearest directory above that there is.
fn stand_in(path: &str) -> String {
    let path = Path::new(path.strip_suffix(DELETED).unwrap_or(path));
    let mut name = path;
    for above in path.ancestors().skip(1) {
        if above.is_dir() {
            break;
        }
        name = above;
    }
    let mut name = name.to_string_lossy().into_owned();
    while Path::new(&name).exists() {
        name.push('_');
    }
    name
}

/// Makes a directory for `work` to use, which is deleted then.
pub(crate) fn make(shell: &mut Shell, path: &str, work: impl FnOnce(&mut Shell, &str)) {
    let path = stand_in(path);
    let name = shell.program.string(&path);
    let args = [name.into(), 0o700.into()];
    let label = format!("make {path} in place of one that was deleted");
    shell.program.must(libc::SYS_mkdir, &args, label);
    work(shell, &path);
    shell
        .program
        .must(libc::SYS_rmdir, &[name.into()], format!("delete {path}"));
}
