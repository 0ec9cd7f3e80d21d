//! Without root and without capabilities: every command works as far as the kernel lets it, or says what is missing
//! and how to get it.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::{Output, Place, Subject, binary, is_root, run, skip, wait_for};

/// A place that anybody may use, with a copy of ckptd and of a subject.
struct World {
    place: Place,
    ckptd: PathBuf,
    subject: PathBuf,
}

impl World {
    fn new() -> Option<Self> {
        if !is_root() {
            skip(
                "unprivileged",
                "only root can become nobody; run the other tests as an ordinary user instead",
            );
            return None;
        }
        let place = Place::new();
        let anybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(place.path(), anybody.clone()).unwrap();
        let (ckptd, subject) = (
            place.path().join("ckptd-binary"),
            place.path().join("subject"),
        );
        // Not by ourselves: what another test forks meanwhile would hold the copy open for writing, so that it cannot be executed.
        let copy = |from: &Path, to: &Path| {
            assert!(
                Command::new("cp")
                    .args([from, to])
                    .status()
                    .unwrap()
                    .success()
            );
        };
        copy(&binary(), &ckptd);
        copy(&Subject::new("children").build().unwrap(), &subject);
        for path in [&ckptd, &subject] {
            fs::set_permissions(path, anybody.clone()).unwrap();
        }
        fs::create_dir(place.path().join("work")).unwrap();
        fs::set_permissions(place.path().join("work"), anybody).unwrap();
        Some(Self {
            place,
            ckptd,
            subject,
        })
    }

    /// A command as nobody, without any capability.
    fn as_nobody(&self, words: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ]);
        command
            .arg(&self.ckptd)
            .args(words)
            .current_dir(self.place.path())
            .stdin(Stdio::null());
        command
            .env("CKPTD_DIR", self.place.path().join("store"))
            .env("CKPTD_TEST_JOB", self.mark());
        command
    }

    fn mark(&self) -> String {
        self.place
            .path()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        tests::kill_marked(&self.mark());
    }
}

/// Success, or a failure that names the right that is missing.
#[track_caller]
fn expect_done_or_explained(output: Output) -> bool {
    assert!(!output.stderr.contains("panicked at"), "{output}");
    if output.code() == 0 {
        return true;
    }
    assert!([1, 3].contains(&output.code()), "{output}");
    let named = [
        "CAP_",
        "root",
        "ptrace_scope",
        "user namespace",
        "privilege",
    ]
    .iter()
    .any(|word| output.stderr.contains(word));
    assert!(
        named,
        "the message does not say which right is missing\n{output}"
    );
    false
}

#[test]
fn doctor_says_what_is_missing() {
    let Some(world) = World::new() else { return };
    let output = run(&mut world.as_nobody(&["doctor"]));
    assert!([0, 1].contains(&output.code()), "{output}");
    assert!(
        output.stdout.contains("CAP_"),
        "it names no capability\n{output}"
    );
    let json = run(&mut world.as_nobody(&["doctor", "--json"]));
    let _ = json.json();
}

#[test]
fn a_job_of_ones_own() {
    let Some(world) = World::new() else { return };
    let name = world.mark();
    let (subject, work) = (
        world.subject.to_str().unwrap(),
        world.place.path().join("work"),
    );
    let mut command = world.as_nobody(&[
        "run",
        "--name",
        &name,
        "--",
        subject,
        work.to_str().unwrap(),
    ]);
    command.stdout(fs::File::create(world.place.path().join("out")).unwrap());
    let mut supervisor = command.spawn().unwrap();
    wait_for("READY", || work.join("ready").exists().then_some(()));
    let taken = expect_done_or_explained(run(&mut world.as_nobody(&["checkpoint", &name])));
    if taken {
        for words in [vec!["list"], vec!["show", &name], vec!["verify", &name]] {
            let _ = run(&mut world.as_nobody(&words)).expect(0);
        }
    }
    // The job is unharmed.
    fs::write(work.join("go"), "").unwrap();
    let status = wait_for("the job to end", || supervisor.try_wait().unwrap());
    assert!(status.success(), "{status}");
    if taken {
        let _ = fs::remove_file(work.join("told"));
        let _ = expect_done_or_explained(run(&mut world.as_nobody(&["restore", &name])));
    }
}

#[test]
fn a_process_of_somebody_else() {
    let Some(world) = World::new() else { return };
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    let output = run(&mut world.as_nobody(&["checkpoint", "--pid", &other.id().to_string()]));
    let running = other.try_wait().unwrap().is_none();
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(running, "the other's process was harmed");
    assert_eq!(output.code(), 1, "{output}");
    assert!(!expect_done_or_explained(output));
}

#[test]
fn a_store_of_somebody_else() {
    let Some(world) = World::new() else { return };
    let store = world.place.path().join("store");
    fs::create_dir(&store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o700)).unwrap();
    for words in [
        vec!["list"],
        vec!["show", "x"],
        vec!["verify", "x"],
        vec!["restore", "x"],
    ] {
        let output = run(&mut world.as_nobody(&words));
        assert!(
            output.code() == 1 && output.stderr.contains(store.to_str().unwrap()),
            "{output}"
        );
    }
}
