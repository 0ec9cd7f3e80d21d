//! A job in the hands of a tool: started, saved, killed, brought back, and asked whether it is what it was.

use super::job::Told;
use super::measure::{self, Measured};
use super::scenario::{Place, Turn};
use super::throttle::Throttle;
use super::tool::{Which, words};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) struct Session<'a> {
    turn: &'a Turn<'a>,
    pub(crate) told: Told,
    /// The name it has with ckptd: names of running jobs are the machine's, and others may measure too.
    pub(crate) name: String,
    /// The job, or the tool that became it or supervises it.
    child: Child,
    /// The process that leads the job.
    pid: u32,
    /// So many checkpoints were taken.
    taken: u32,
    /// The disk is slow.
    throttle: Option<Throttle>,
}

/// A checkpoint that was taken.
pub(crate) struct Taken {
    pub(crate) measured: Measured,
    /// How long the job stood still, by its own clock, in seconds.
    pub(crate) stopped: f64,
    /// By how much the images grew.
    pub(crate) bytes: u64,
    /// Until all of it was on disk, in seconds.
    pub(crate) durable: f64,
}

impl<'a> Session<'a> {
    /// Starts the job, and waits until it is as large as it will be.
    pub(crate) fn start(turn: &'a Turn) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench-{}-{number}", std::process::id());
        let dir = turn.scratch.join("job");
        let images = turn.scratch.join("images");
        for dir in [&dir, &images] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let mut command = launch(turn, &name, &turn.programs.join(turn.scenario.program))?;
        let child = command
            .arg(&dir)
            .args(turn.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(turn.scratch.join("start.log"))?)
            .spawn()
            .with_context(|| format!("cannot start {}", turn.scenario.program))?;
        let told = Told::new(&dir);
        let mut session = Self {
            turn,
            told,
            name,
            pid: child.id(),
            child,
            taken: 0,
            throttle: None,
        };
        let pid = session.ready()?;
        // Dmtcp gives the job a pid that the kernel does not know.
        if turn.way.tool != Which::Dmtcp {
            session.pid = pid;
        }
        Ok(session)
    }

    fn ready(&mut self) -> Result<u32> {
        let log = self.turn.scratch.join("start.log");
        self.told.wait_until_or("ready", |told| {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "did not start: {status}\n{}",
                    fs::read_to_string(&log).unwrap_or_default().trim()
                );
            }
            Ok(told.ready())
        })
    }

    /// Bytes the job has resident, without its children.
    pub(crate) fn memory(&self) -> Result<u64> {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid))?;
        let pages = statm.split(' ').nth(1);
        let pages: u64 = pages.context("statm has no second field")?.parse()?;
        Ok(pages * 4096)
    }

    /// The most memory that its supervisor had, in bytes; 0 where it has none.
    pub(crate) fn supervisor_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
        if self.turn.way.run.is_some() {
            kib.unwrap_or(0) * 1024
        } else {
            0
        }
    }

    /// Saves it; it runs on.
    pub(crate) fn checkpoint(&mut self) -> Result<Taken> {
        let images = self.turn.scratch.join("images");
        let before = size_of(&images)?;
        let command = self.checkpoint_command()?;
        let measured =
            measure::run(&command, &self.turn.scratch.join("log")).context("checkpoint")?;
        self.taken += 1;
        if self.turn.scenario.place != Place::Memory {
            nix::unistd::syncfs(fs::File::open(&images)?)?;
        }
        let durable = (measure::now() - measured.started) as f64 / 1e9;
        // It notes that it stood still once it runs again.
        std::thread::sleep(Duration::from_millis(50));
        Ok(Taken {
            measured,
            stopped: self.told.longest_gap(measured.started),
            bytes: size_of(&images)?.saturating_sub(before),
            durable,
        })
    }

    fn checkpoint_command(&self) -> Result<Vec<String>> {
        let Turn { way, tools, .. } = self.turn;
        let images = self.turn.scratch.join("images");
        let pid = self.pid.to_string();
        let number = self.taken + 1;
        let mut command = match way.tool {
            Which::Bare => bail!("nobody is there to take a checkpoint"),
            Which::Ckptd => {
                let dir = images.display().to_string();
                let of_pid = ["checkpoint", "--dir", &dir, "--pid", &pid, "--name"];
                let of_job = &of_pid[..3];
                words(
                    tools.ckptd(),
                    if way.run.is_some() { of_job } else { &of_pid },
                )
            }
            Which::Criu => {
                let dir = images.join(number.to_string());
                fs::create_dir_all(&dir)?;
                let dir = dir.display().to_string();
                let mut command = words(
                    tools.criu()?,
                    &[
                        "dump",
                        "--tree",
                        &pid,
                        "--images-dir",
                        &dir,
                        "--leave-running",
                        "--verbosity=1",
                    ],
                );
                if way.checkpoint.contains(&"--track-mem") && number > 1 {
                    command.push(format!("--prev-images-dir=../{}", self.taken));
                }
                command
            }
            Which::Dmtcp => words(
                &tools.dmtcp("dmtcp_command")?,
                &["--port", &self.port()?, "--bcheckpoint"],
            ),
        };
        command.extend(way.checkpoint.iter().map(|&word| word.to_owned()));
        if way.tool == Which::Ckptd {
            command.push(self.name.clone());
        }
        Ok(command)
    }

    /// Where dmtcp's coordinator listens.
    fn port(&self) -> Result<String> {
        let file = self.turn.scratch.join("port");
        let port =
            fs::read_to_string(&file).context("dmtcp's coordinator has not told its port")?;
        Ok(port.trim().to_owned())
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.told.kill(self.pid);
        if self.turn.way.run.is_none() {
            let _ = self.child.kill();
        }
        self.child.wait()?;
        self.told.gone(self.pid)
    }

    /// Brings it back.
    pub(crate) fn restore(&mut self) -> Result<Restored> {
        let images = self.turn.scratch.join("images");
        if self.turn.scenario.place != Place::Memory {
            forget(&images)?;
        }
        if let (Place::Throttled(mebibytes), None) = (self.turn.scenario.place, &self.throttle) {
            self.throttle = Some(Throttle::begin(&images, mebibytes)?);
        }
        let command = self.restore_command()?;
        let log = self.turn.scratch.join("log");
        if self.turn.way.tool != Which::Dmtcp {
            let measured = measure::run(&command, &log).context("restore")?;
            return Ok(Restored {
                started: measured.started,
                resumed: self.told.wait_for_resume(measured.started)?,
                peak: measured.peak,
            });
        }
        // This one becomes the job, in the directory it was started in.
        let started = measure::now();
        self.child = Command::new(&command[0])
            .args(&command[1..])
            .current_dir(self.turn.scratch.join("job"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let resumed = self.told.wait_until_or("running again", |told| {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "restore: {status}\n{}",
                    fs::read_to_string(&log).unwrap_or_default().trim()
                );
            }
            Ok(told.resumed(started))
        })?;
        Ok(Restored {
            started,
            resumed,
            peak: 0,
        })
    }

    fn restore_command(&self) -> Result<Vec<String>> {
        let Turn { way, tools, .. } = self.turn;
        let images = self.turn.scratch.join("images");
        let shown = images.display().to_string();
        let mut command = match way.tool {
            Which::Bare => bail!("nobody is there to restore it"),
            Which::Ckptd => words(tools.ckptd(), &["restore", "--detach", "--dir", &shown]),
            Which::Criu => {
                let dir = images.join(self.taken.to_string()).display().to_string();
                words(
                    tools.criu()?,
                    &[
                        "restore",
                        "--restore-detached",
                        "--images-dir",
                        &dir,
                        "--verbosity=1",
                    ],
                )
            }
            Which::Dmtcp => {
                let port = self.turn.scratch.join("port").display().to_string();
                let mut command = words(
                    &tools.dmtcp("dmtcp_restart")?,
                    &["--new-coordinator", "--port", "0", "--port-file", &port],
                );
                let found = fs::read_dir(&images)?.filter_map(|entry| Some(entry.ok()?.path()));
                let found = found.filter(|path| path.extension().is_some_and(|end| end == "dmtcp"));
                command.extend(found.map(|path: PathBuf| path.display().to_string()));
                command
            }
        };
        command.extend(way.restore.iter().map(|&word| word.to_owned()));
        Ok(command)
    }

    /// Has it check itself and end.
    pub(crate) fn verify(&mut self) -> Result<()> {
        self.told.verify()?;
        if self.turn.way.tool == Which::Dmtcp {
            self.child.wait()?;
        }
        self.told.gone(self.pid)
    }
}

impl Drop for Session<'_> {
    /// Whatever went wrong: the job ends, and who supervises it.
    fn drop(&mut self) {
        self.told.end();
        self.told.kill(self.pid);
        if self.turn.way.tool != Which::Ckptd {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// A job that was brought back.
pub(crate) struct Restored {
    pub(crate) started: u64,
    /// When it ran, by its own clock.
    pub(crate) resumed: u64,
    /// The most memory the tool had, in bytes; 0 where nobody knows.
    pub(crate) peak: u64,
}

impl Restored {
    /// Seconds until it ran.
    pub(crate) fn seconds(&self) -> f64 {
        self.resumed.saturating_sub(self.started) as f64 / 1e9
    }
}

/// The command that starts a job, which is `program`; its arguments may follow.
pub(crate) fn launch(turn: &Turn, name: &str, program: &Path) -> Result<Command> {
    let images = turn.scratch.join("images");
    let way = turn.way;
    let mut command = match (way.tool, way.run) {
        (Which::Ckptd, Some(options)) => {
            let mut command = Command::new(turn.tools.ckptd());
            command.args(["run", "--name", name, "--dir"]);
            command.arg(images).args(options).arg("--");
            command
        }
        (Which::Dmtcp, options) => {
            let mut command = Command::new(turn.tools.dmtcp("dmtcp_launch")?);
            command.args(["--new-coordinator", "--port", "0", "--port-file"]);
            command.arg(turn.scratch.join("port")).arg("--ckptdir");
            command.arg(images).args(options.unwrap_or_default());
            command
        }
        _ => return Ok(Command::new(program)),
    };
    command.arg(program);
    Ok(command)
}

/// Bytes of all files below a directory.
fn size_of(dir: &Path) -> Result<u64> {
    Ok(files(dir)?.iter().map(|(_, bytes)| bytes).sum())
}

/// All files below a directory, and their bytes.
fn files(dir: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let data = entry.metadata()?;
        if data.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push((entry.path(), data.len()));
        }
    }
    Ok(found)
}

/// Has the kernel forget what it has read or written of the files below a directory: it will come from the disk.
fn forget(dir: &Path) -> Result<()> {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    for (path, _) in files(dir)? {
        let file = fs::File::open(path)?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    Ok(())
}
