//! The tools that are compared: where they are, and their command lines.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A tool by its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// No tool: the job alone.
    Bare,
    Ckptd,
    Criu,
    Dmtcp,
}

/// The tools that are there.
#[derive(Debug)]
pub(crate) struct Tools {
    ckptd: PathBuf,
    /// The program.
    criu: Option<PathBuf>,
    /// The directory of its programs.
    dmtcp: Option<PathBuf>,
}

/// `criu=PATH` or `dmtcp=DIR`.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    tool: Which,
    path: PathBuf,
}

pub(crate) fn parse_peer(text: &str) -> Result<Peer, String> {
    let (name, path) = text.split_once('=').unwrap_or((text, ""));
    let path = PathBuf::from(path);
    let (tool, program, path) = match name {
        "criu" => (Which::Criu, path.clone(), path),
        // Its programs, or what it was built in.
        "dmtcp" if path.join("bin/dmtcp_launch").is_file() => {
            let bin = path.join("bin");
            (Which::Dmtcp, bin.join("dmtcp_launch"), bin)
        }
        "dmtcp" => (Which::Dmtcp, path.join("dmtcp_launch"), path),
        _ => return Err("only criu=PATH and dmtcp=DIR are known".into()),
    };
    if !program.is_file() {
        return Err(format!("there is no program {}", program.display()));
    }
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    Ok(Peer { tool, path })
}

impl Tools {
    /// Those that were named, else those in $PATH.
    pub(crate) fn find(ckptd: PathBuf, peers: &[Peer]) -> Self {
        let named = |tool| peers.iter().find(|peer| peer.tool == tool);
        let found = |program: &str| {
            let search = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&search).find(|dir| dir.join(program).is_file())
        };
        let path = |tool| named(tool).map(|peer| peer.path.clone());
        Self {
            ckptd,
            criu: path(Which::Criu).or_else(|| found("criu").map(|dir| dir.join("criu"))),
            dmtcp: path(Which::Dmtcp).or_else(|| found("dmtcp_launch")),
        }
    }

    pub(crate) fn has(&self, tool: Which) -> bool {
        match tool {
            Which::Bare | Which::Ckptd => true,
            Which::Criu => self.criu.is_some(),
            Which::Dmtcp => self.dmtcp.is_some(),
        }
    }

    /// What each says of its version; of those that are not there, that.
    pub(crate) fn versions(&self) -> Vec<(String, String)> {
        let dmtcp = self.dmtcp.as_ref().map(|bin| bin.join("dmtcp_launch"));
        [
            ("ckptd", Some(&self.ckptd)),
            ("criu", self.criu.as_ref()),
            ("dmtcp", dmtcp.as_ref()),
        ]
        .map(|(name, program)| {
            let version = program.map_or_else(
                || format!("not there: neither in $PATH nor given by --peer {name}=PATH"),
                |program| version(program),
            );
            (name.to_owned(), version)
        })
        .into()
    }

    pub(crate) fn ckptd(&self) -> &Path {
        &self.ckptd
    }

    pub(crate) fn criu(&self) -> Result<&Path> {
        self.criu.as_deref().context("criu is not there")
    }

    /// One of dmtcp's programs.
    pub(crate) fn dmtcp(&self, program: &str) -> Result<PathBuf> {
        let bin = self.dmtcp.as_ref().context("dmtcp is not there")?;
        Ok(bin.join(program))
    }
}

/// The first line with a digit that `program --version` says.
fn version(program: &Path) -> String {
    let said = || -> Result<String> {
        let output = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "{}", output.status);
        let text = String::from_utf8(output.stdout)?;
        let line = text.lines().find(|line| line.contains(char::is_numeric));
        Ok(line.unwrap_or_default().trim().to_owned())
    };
    said().unwrap_or_else(|error| format!("{}: {error:#}", program.display()))
}

/// A command line of a program's name and words.
pub(crate) fn words(program: &Path, rest: &[&str]) -> Vec<String> {
    let program = program.display().to_string();
    std::iter::once(program)
        .chain(rest.iter().map(|&word| word.into()))
        .collect()
}
