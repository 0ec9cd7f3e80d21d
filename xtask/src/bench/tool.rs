//! The tools that are compared.

use std::path::{Path, PathBuf};

/// A program that saves and restores jobs.
#[derive(Debug, Clone)]
pub(crate) enum Tool {
    Ckptd(PathBuf),
    Criu(PathBuf),
}

/// `criu=PATH`.
pub(crate) fn parse_peer(text: &str) -> Result<Tool, String> {
    match text.split_once('=') {
        Some(("criu", path)) if Path::new(path).is_file() => Ok(Tool::Criu(path.into())),
        Some(("criu", path)) => Err(format!("there is no program {path}")),
        _ => Err("only criu=PATH is known".into()),
    }
}

impl Tool {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ckptd(_) => "ckptd",
            Self::Criu(_) => "criu",
        }
    }

    /// The command line that saves the tree of `pid`, which runs on, to the directory `images`.
    pub(crate) fn checkpoint(&self, pid: u32, images: &Path) -> Vec<String> {
        // Names of running jobs are the machine's, and others may measure too.
        let name = format!("bench-{pid}");
        let pid = pid.to_string();
        let images = images.display().to_string();
        match self {
            Self::Ckptd(path) => words(
                path,
                &[
                    "checkpoint",
                    "--pid",
                    &pid,
                    "--name",
                    &name,
                    "--dir",
                    &images,
                ],
            ),
            Self::Criu(path) => words(
                path,
                &[
                    "dump",
                    "--tree",
                    &pid,
                    "--images-dir",
                    &images,
                    "--leave-running",
                    "--verbosity=1",
                ],
            ),
        }
    }

    /// The command line that brings it back in the background.
    pub(crate) fn restore(&self, images: &Path) -> Vec<String> {
        let images = images.display().to_string();
        match self {
            Self::Ckptd(path) => words(path, &["restore", "--detach", "--dir", &images]),
            Self::Criu(path) => words(
                path,
                &[
                    "restore",
                    "--restore-detached",
                    "--images-dir",
                    &images,
                    "--verbosity=1",
                ],
            ),
        }
    }
}

fn words(program: &Path, rest: &[&str]) -> Vec<String> {
    let program = program.display().to_string();
    std::iter::once(program)
        .chain(rest.iter().map(|&word| word.into()))
        .collect()
}
