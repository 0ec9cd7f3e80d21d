//! One job under `ckptd`: started, checkpointed, killed, restored, finished.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use crate::command::shell_status;
use crate::processes::MARK;
use crate::{Output, Subject, binary, kill_marked, marked, run, skip, wait_for};

/// A directory of its own for one test, kept when the test fails.
#[derive(Debug)]
pub struct Place {
    dir: Option<TempDir>,
    path: PathBuf,
}

impl Place {
    /// Makes one.
    ///
    /// # Panics
    /// When the temporary directory cannot be written to.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ckptd-test-")
            .tempdir()
            .expect("a temporary directory");
        let path = dir.path().to_owned();
        Self {
            dir: Some(dir),
            path,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.dir.take().map(TempDir::keep);
            eprintln!("kept: {}", kept.unwrap_or_default().display());
        }
    }
}

/// A job, its directory and the `ckptd` that supervises it. Dropping it kills all of them.
#[derive(Debug)]
pub struct Job {
    /// Its name, which also marks its processes.
    pub name: String,
    /// The store, for `--dir`.
    pub store: PathBuf,
    /// The subject's work directory.
    pub work: PathBuf,
    out: PathBuf,
    log: PathBuf,
    supervisor: Option<Child>,
    /// Whether it was started without ckptd, and is known by its process id only.
    alone: bool,
    place: Place,
}

impl Job {
    /// Starts a subject under `ckptd run` and waits until it is ready; none when this machine cannot do it.
    ///
    /// # Panics
    /// When it does not get ready.
    #[must_use]
    pub fn start(subject: &Subject) -> Option<Self> {
        Self::start_with(subject, &[])
    }

    /// As [`Job::start`], with more arguments.
    ///
    /// # Panics
    /// When it does not get ready.
    #[must_use]
    pub fn start_with(subject: &Subject, arguments: &[&str]) -> Option<Self> {
        let program = match subject.build() {
            Ok(program) => program,
            Err(why) => {
                skip(subject.name, &why);
                return None;
            }
        };
        let mut job = Self::prepare(subject.name);
        let work = job.work.clone();
        let mut words = vec![program.as_os_str(), work.as_os_str()];
        words.extend(arguments.iter().map(OsStr::new));
        job.run(&words, &[]);
        job.await_ready(subject.name).then_some(job)
    }

    /// Starts a subject without ckptd, and waits until it is ready; none when this machine cannot do it.
    ///
    /// # Panics
    /// When it does not get ready.
    #[must_use]
    pub fn start_alone(subject: &Subject, environment: &[(&str, &str)]) -> Option<Self> {
        let program = match subject.build() {
            Ok(program) => program,
            Err(why) => {
                skip(subject.name, &why);
                return None;
            }
        };
        let mut job = Self::prepare(subject.name);
        job.alone = true;
        let mut command = Command::new(program);
        command.arg(&job.work).envs(environment.iter().copied());
        job.spawn(command);
        job.await_ready(subject.name).then_some(job)
    }

    /// A job that is not started yet.
    ///
    /// # Panics
    /// When its directories cannot be made.
    #[must_use]
    pub fn prepare(name: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let place = Place::new();
        let name = format!(
            "{name}-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::SeqCst)
        );
        let (store, work) = (place.path().join("store"), place.path().join("work"));
        fs::create_dir(&work).expect("work directory");
        let (out, log) = (place.path().join("out"), place.path().join("log"));
        Self {
            name,
            store,
            work,
            out,
            log,
            supervisor: None,
            alone: false,
            place,
        }
    }

    /// Another job, in the same store and with the same directory and output, to be restored from a checkpoint of this one.
    #[must_use]
    pub fn beside(&self) -> Self {
        let place = Place::new();
        Self {
            name: self.name.clone(),
            store: self.store.clone(),
            work: self.work.clone(),
            out: self.out.clone(),
            log: place.path().join("log"),
            supervisor: None,
            alone: false,
            place,
        }
    }

    /// `ckptd run ... -- words`.
    pub fn run<Word: AsRef<OsStr>>(&mut self, words: &[Word], environment: &[(&str, &str)]) {
        let mut command = self.ckptd("run");
        command.arg("--name").arg(&self.name).arg("--").args(words);
        command.envs(environment.iter().copied());
        self.spawn(command);
    }

    /// The command `ckptd verb --dir STORE`, to be completed.
    #[must_use]
    pub fn ckptd(&self, verb: &str) -> Command {
        let mut command = Command::new(binary());
        command
            .arg(verb)
            .arg("--dir")
            .arg(&self.store)
            .env("CKPTD_TEST_FAULT", self.place.path().join("fault"))
            .stdin(Stdio::null());
        command
    }

    /// Spawns something whose output is the job's, as its supervisor.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&mut self, command: Command) {
        // Whatever the tests were started with beyond the standard descriptors is not to be part of the job.
        const CLOSE: &str = r#"for fd in /proc/$$/fd/*; do n=${fd##*/}; [ "$n" -gt 2 ] && eval "exec $n>&-"; done; exec "$@""#;
        let given = command;
        let mut command = Command::new("bash");
        command.args(["-c", CLOSE, "bash"]);
        command.arg(given.get_program()).args(given.get_args());
        let environment = |(name, value)| Some((name, Option::<&OsStr>::as_ref(&value).copied()?));
        command.envs(given.get_envs().filter_map(environment));
        if let Some(directory) = given.get_current_dir() {
            command.current_dir(directory);
        }
        let append = |path: &Path| -> File {
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .expect("output file")
        };
        command.env(MARK, &self.name).stdin(Stdio::null());
        command.stdout(append(&self.out)).stderr(append(&self.log));
        self.supervisor = Some(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("{command:?}: {error}")),
        );
    }

    /// The process id of what was spawned last.
    #[must_use]
    pub fn supervisor(&self) -> Option<i32> {
        self.supervisor
            .as_ref()
            .map(|child| i32::try_from(child.id()).expect("a process id"))
    }

    /// Every process of the job but the supervisor.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let supervisor = self.supervisor();
        marked(&self.name)
            .into_iter()
            .filter(|pid| Some(*pid) != supervisor)
            .collect()
    }

    /// Waits for the file `ready`; false when the subject says that it cannot be done here.
    ///
    /// # Panics
    /// When it ends before.
    pub fn await_ready(&mut self, name: &str) -> bool {
        let ready = self.work.join("ready");
        let ended = wait_for("READY", || {
            let ended = self
                .supervisor
                .as_mut()
                .and_then(|child| child.try_wait().expect("wait"));
            if ready.exists() {
                Some(None)
            } else {
                ended.map(Some)
            }
        });
        let Some(status) = ended else { return true };
        if let Some(line) = self.output().lines().find(|line| line.starts_with("SKIP")) {
            skip(name, line.split_once("] ").map_or(line, |(_, why)| why));
            return false;
        }
        panic!("{name} ended before it was ready: {status}\n{self}");
    }

    /// What the job wrote so far.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read(&self.out)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// What its supervisors said so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Runs `ckptd checkpoint`, by process id where the job has no supervisor.
    #[track_caller]
    pub fn checkpoint(&self, arguments: &[&str]) -> Output {
        let mut command = self.ckptd("checkpoint");
        command.args(arguments);
        match self.supervisor() {
            Some(pid) if self.alone => {
                command.args(["--pid", &pid.to_string(), "--name", &self.name])
            }
            _ => command.arg(&self.name),
        };
        run(&mut command)
    }

    /// Has ckptd die (`kill MOMENT`) or the checkpoint fail (`fail MOMENT`) at a moment of the next checkpoint; see `engine/src/fault.rs`.
    pub fn set_fault(&self, fault: &str) {
        fs::write(self.place.path().join("fault"), fault).expect("fault");
    }

    /// Whether the moment of [`Job::set_fault`] has come; it does not come any more.
    #[must_use]
    pub fn clear_fault(&self) -> bool {
        fs::remove_file(self.place.path().join("fault")).is_err()
    }

    /// Every file of the job's image in the store, sorted: neither its lock nor what is told of its last operations.
    #[must_use]
    pub fn stored(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.store.join(&self.name)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.file_name() != Some(OsStr::new("lock"))
                    && path.extension() != Some(OsStr::new("json"))
                {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// The manifests in the store: one a checkpoint.
    #[must_use]
    pub fn manifests(&self) -> Vec<PathBuf> {
        let mut found = self.stored();
        found.retain(|path| path.extension() == Some(OsStr::new("ckpt")));
        found
    }

    /// Kills every process of the job and its supervisor, at once.
    pub fn kill_all(&mut self) {
        kill_marked(&self.name);
        if let Some(mut child) = self.supervisor.take() {
            let _ = child.wait();
        }
    }

    /// Starts `ckptd restore` in the foreground.
    pub fn restore(&mut self, arguments: &[&str]) {
        self.alone = false;
        let mut command = self.ckptd("restore");
        command.args(arguments).arg(&self.name);
        self.spawn(command);
    }

    /// Waits until `ckptd` has noted that the job runs, or has ended.
    ///
    /// # Panics
    /// When neither happens.
    #[track_caller]
    pub fn await_running(&mut self) {
        wait_for("the job to be noted as running", || {
            let listed = run(self.ckptd("list").arg("--json"));
            let jobs = serde_json::from_str(&listed.stdout).unwrap_or(serde_json::Value::Null);
            let ours = jobs
                .as_array()
                .into_iter()
                .flatten()
                .find(|job| job["name"] == self.name.as_str());
            let runs = ours.is_some_and(|job| job["pid"].is_number());
            let ended = self
                .supervisor
                .as_mut()
                .is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            (runs || ended).then_some(())
        });
    }

    /// Tells the subject that the checkpoint is over.
    pub fn go(&self) {
        fs::write(self.work.join("go"), "").expect("go");
    }

    /// Waits for the end of what was spawned last; its exit status as a shell counts it.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        let code = crate::wait_at_most(crate::PATIENCE, || self.ended());
        code.unwrap_or_else(|| panic!("the job does not end\n{self}"))
    }

    /// The exit status of what was spawned last, as a shell counts it; none while it runs.
    #[must_use]
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.supervisor.as_mut()?.try_wait().expect("wait")?;
        self.supervisor = None;
        Some(shell_status(status))
    }

    /// Waits for the end, which must be a PASS.
    #[track_caller]
    pub fn finish(&mut self) {
        let code = self.wait();
        assert!(
            code == 0 && self.output().ends_with("PASS\n"),
            "exit status {code}\n{self}"
        );
    }
}

impl std::fmt::Display for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let log = fs::read(&self.log).unwrap_or_default();
        writeln!(f, "job {} in {}", self.name, self.place.path().display())?;
        writeln!(
            f,
            "--- its output\n{}--- ckptd\n{}---",
            self.output(),
            String::from_utf8_lossy(&log)
        )?;
        for pid in marked(&self.name) {
            let read =
                |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
            let (comm, wchan, call) = (read("comm"), read("wchan"), read("syscall"));
            writeln!(
                f,
                "{pid} {} {:?} {wchan} {}",
                comm.trim(),
                crate::state(pid),
                call.trim()
            )?;
        }
        Ok(())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.kill_all();
    }
}
