//! Building the subjects.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

/// What makes a program of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compiler {
    /// gcc, against the system's C library.
    Gcc,
    /// gcc -static.
    GccStatic,
    /// musl-gcc.
    Musl,
    /// musl-gcc -static.
    MuslStatic,
    /// go, without cgo.
    Go,
}

/// One test program.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// The name of the test, and of the binary.
    pub name: &'static str,
    /// The file in `tests/subjects`, without `.c`; the folder for Go.
    pub source: &'static str,
    /// What builds it.
    pub compiler: Compiler,
    /// Whether it has orphans, which only a supervisor knows to be part of the job.
    pub orphans: bool,
}

impl Subject {
    /// The subject `name`, from `name.c`, built with gcc.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            source: name,
            compiler: Compiler::Gcc,
            orphans: false,
        }
    }

    /// The same source under another compiler, as another test.
    #[must_use]
    pub const fn variant(name: &'static str, source: &'static str, compiler: Compiler) -> Self {
        Self {
            name,
            source,
            compiler,
            orphans: false,
        }
    }

    /// The same, with orphans.
    #[must_use]
    pub const fn with_orphans(mut self) -> Self {
        self.orphans = true;
        self
    }

    /// The binary, built when it is not there or older than its sources; `Err` says why this machine cannot build it.
    ///
    /// # Panics
    /// When the subject does not compile.
    pub fn build(&self) -> Result<PathBuf, String> {
        let folder = manifest_dir().join("subjects");
        let common = [
            "-std=gnu11",
            "-O2",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pthread",
        ];
        let source = folder.join(format!("{}.c", self.source));
        let mut sources = vec![source.clone(), folder.join("subject.h")];
        let mut command = match self.compiler {
            Compiler::Gcc | Compiler::GccStatic => Command::new("gcc"),
            Compiler::Musl | Compiler::MuslStatic => Command::new("musl-gcc"),
            Compiler::Go => Command::new("go"),
        };
        match self.compiler {
            Compiler::Go => {
                sources = vec![folder.join("go/main.go"), folder.join("go/go.mod")];
                command
                    .current_dir(folder.join("go"))
                    .env("CGO_ENABLED", "0")
                    .args(["build", "-o"]);
            }
            Compiler::GccStatic | Compiler::MuslStatic => {
                command.args(common).arg("-static").arg(&source).arg("-o");
            }
            Compiler::Gcc | Compiler::Musl => {
                command.args(common).arg(&source).arg("-o");
            }
        }
        build(self.name, &sources, command)
    }
}

/// A helper program of `tests/tools`, built.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn helper(name: &str) -> PathBuf {
    let source = manifest_dir().join("tools").join(format!("{name}.c"));
    let mut command = Command::new("gcc");
    command
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"])
        .arg(&source)
        .arg("-o");
    build(name, &[source], command).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// The folder of this crate.
#[must_use]
pub fn manifest_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `command OUTPUT` when the output is missing or older than one of `sources`. One builder at a time.
fn build(name: &str, sources: &[PathBuf], mut command: Command) -> Result<PathBuf, String> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| manifest_dir().join("../target"), PathBuf::from);
    let folder = target.join("subjects");
    fs::create_dir_all(&folder).expect("target/subjects");
    let lock = File::create(folder.join(format!(".{name}.lock"))).expect("lock file");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("lock");
    let output = folder.join(name);
    let made = |path: &Path| {
        fs::metadata(path)
            .and_then(|data| data.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH)
    };
    if output.is_file() && sources.iter().all(|source| made(source) <= made(&output)) {
        return Ok(output);
    }
    let fresh = folder.join(format!("{name}.new"));
    command.arg(&fresh);
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Err(_) => Err(format!("{program} is not installed")),
        Ok(said) if said.status.success() => {
            fs::rename(&fresh, &output).expect("rename");
            Ok(output)
        }
        Ok(said) => panic!(
            "{name} does not compile:\n{}",
            String::from_utf8_lossy(&said.stderr)
        ),
    }
}
