//! The commands: that `run` is invisible to the job, exit statuses, and what `--json` prints.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{
    Job, Place, Subject, alive, binary, is_root, run, show_command, skip, state, wait_for,
};

const SUBJECT: Subject = Subject::new("children");

/// `ckptd run` of a shell command, in a store of its own.
fn shell(place: &Place, script: &str) -> Command {
    let mut command = Command::new(binary());
    command
        .arg("run")
        .arg("--dir")
        .arg(place.path().join("store"))
        .args(["--", "sh", "-c", script]);
    command.stdin(Stdio::null());
    command
}

#[test]
fn run_passes_the_exit_status_on() {
    let place = Place::new();
    for code in [0, 1, 2, 3, 77, 255] {
        let _ = run(&mut shell(&place, &format!("exit {code}"))).expect(code);
    }
}

#[test]
fn run_passes_death_by_signal_on() {
    let place = Place::new();
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGSEGV] {
        let _ = run(&mut shell(
            &place,
            &format!("ulimit -c 0; kill -{} $$", signal as i32),
        ))
        .expect(128 + signal as i32);
    }
}

#[test]
fn run_passes_output_on_untouched() {
    let place = Place::new();
    let output = run(&mut shell(
        &place,
        "printf 'a\\001\\n\\nb'; printf 'to stderr' >&2",
    ))
    .expect(0);
    assert_eq!(output.stdout, "a\u{1}\n\nb");
    assert_eq!(output.stderr, "to stderr");
}

#[test]
fn run_passes_input_on() {
    let place = Place::new();
    let mut child = shell(&place, "cat; echo end")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = "line\n".repeat(100_000);
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).map(|()| text));
    let output = child.wait_with_output().unwrap();
    let text = writer.join().unwrap().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), text + "end\n");
}

#[test]
fn run_leaves_descriptors_environment_and_directory_alone() {
    let place = Place::new();
    let script = "ls /proc/self/fd | tr '\\n' ' '; pwd; echo $0 $SPECIAL; ulimit -n; grep -E '^(Sig[^Q]|Shd)' /proc/self/status; umask; nice";
    let mut with = shell(&place, script);
    let mut without = Command::new("sh");
    without.args(["-c", script]).stdin(Stdio::null());
    let (with, without) = (
        run(with.env("SPECIAL", "a b").current_dir("/usr")),
        run(without.env("SPECIAL", "a b").current_dir("/usr")),
    );
    assert_eq!(with.stdout, without.stdout);
}

#[test]
fn run_passes_signals_on() {
    let place = Place::new();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGQUIT,
    ] {
        let ready = place.path().join(format!("ready-{signal}"));
        let name = signal.as_str().trim_start_matches("SIG");
        let script = format!(
            "trap 'exit 5' {name}; : >{}; while :; do sleep 0.05; done",
            ready.display()
        );
        let mut child = shell(&place, &script).spawn().unwrap();
        wait_for("the job to start", || ready.exists().then_some(()));
        kill(
            Pid::from_raw(i32::try_from(child.id()).expect("a process id")),
            signal,
        )
        .unwrap();
        let status = wait_for("the job to end", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(5), "{signal}");
    }
}

#[test]
fn run_of_what_is_not_there_says_so() {
    let place = Place::new();
    let mut command = Command::new(binary());
    command
        .arg("run")
        .arg("--dir")
        .arg(place.path())
        .args(["--", "/no/such/program"]);
    let output = run(&mut command);
    assert_ne!(output.code(), 0, "{output}");
    let _ = output.expect_message(&["/no/such/program"]);
}

#[test]
fn wrong_usage_exits_2() {
    let wrong: [&[&str]; 8] = [
        &["no-such-command"],
        &["run"],
        &["checkpoint"],
        &["checkpoint", "--no-such-option", "x"],
        &["restore"],
        &["restore", "--at", "not-a-number", "x"],
        &["restore", "--files", "nonsense", "x"],
        &["checkpoint", "--pid", "1", "and-a-job"],
    ];
    for arguments in wrong {
        let output = run(Command::new(binary()).args(arguments)).expect(2);
        assert!(!output.stderr.is_empty(), "it says nothing\n{output}");
    }
}

#[test]
fn every_command_has_help_with_examples() {
    for verb in [
        "run",
        "checkpoint",
        "restore",
        "list",
        "show",
        "verify",
        "diff",
        "prune",
        "doctor",
    ] {
        let output = run(Command::new(binary()).args([verb, "--help"])).expect(0);
        assert!(output.stdout.contains("Example"), "no example\n{output}");
    }
    let output = run(Command::new(binary()).arg("--version")).expect(0);
    assert!(output.stdout.starts_with("ckptd "), "{output}");
}

#[test]
fn what_is_not_there_exits_1_by_name() {
    let place = Place::new();
    for verb in ["checkpoint", "restore", "show", "verify"] {
        let mut command = Command::new(binary());
        command
            .arg(verb)
            .arg("--dir")
            .arg(place.path().join("store"))
            .arg("no-such-job");
        let _ = run(&mut command).expect(1).expect_message(&["no-such-job"]);
    }
    let mut command = Command::new(binary());
    command
        .args(["checkpoint", "--pid", "4194303", "--dir"])
        .arg(place.path());
    let _ = run(&mut command).expect(1).expect_message(&["4194303"]);
}

#[test]
fn json_parses_and_names_the_job() {
    let Some(mut job) = Job::start(&SUBJECT) else {
        return;
    };
    let taken = job.checkpoint(&["--json"]).expect(0);
    assert_eq!(taken.json()["sequence"], 1, "{taken}");
    let _ = job.checkpoint(&["--json"]).expect(0);
    for verb in ["list", "show", "verify"] {
        let mut command = job.ckptd(verb);
        command.arg("--json");
        if verb != "list" {
            command.arg(&job.name);
        }
        let output = run(&mut command).expect(0);
        assert!(output.json().to_string().contains(&job.name), "{output}");
    }
    let mut command = job.ckptd("diff");
    let diff = run(command.args([&job.name, "1", "2", "--json"]))
        .expect(0)
        .json();
    assert_eq!(
        (&diff["from"], &diff["to"]),
        (&1.into(), &2.into()),
        "{diff}"
    );
    assert_eq!(diff["processes"][0]["state"], "same", "{diff}");
    for verb in ["prune", "doctor"] {
        let mut command = if verb == "prune" {
            job.ckptd(verb)
        } else {
            Command::new(binary())
        };
        if verb == "doctor" {
            command.arg(verb);
        }
        let output = run(command.arg("--json"));
        let _ = output.json();
    }
    job.kill_all();
    let plan = run(job
        .ckptd("restore")
        .args(["--dry-run", "--json"])
        .arg(&job.name))
    .expect(0);
    let _ = plan.json();
    job.go();
    job.restore(&[]);
    job.finish();
}

#[test]
fn people_get_text_that_names_what_matters() {
    let Some(job) = Job::start(&Subject::new("files")) else {
        return;
    };
    let _ = job.checkpoint(&[]).expect(0);
    let listed = run(&mut job.ckptd("list")).expect(0);
    assert!(listed.stdout.contains(&job.name), "{listed}");
    let shown = run(job.ckptd("show").arg(&job.name)).expect(0);
    for word in [
        job.processes()[0].to_string().as_str(),
        "files",
        "stack",
        "work/data",
    ] {
        assert!(shown.stdout.contains(word), "it lacks {word}\n{shown}");
    }
    assert!(
        !shown.stdout.contains('\u{1b}'),
        "colours without a terminal\n{shown}"
    );
    let _ = run(job.ckptd("verify").arg(&job.name)).expect(0);
}

#[test]
fn where_the_time_went_is_told() {
    let Some(mut job) = Job::start(&SUBJECT) else {
        return;
    };
    let timings = |job: &Job| {
        let shown = run(job
            .ckptd("show")
            .args(["--timing", "--json"])
            .arg(&job.name));
        let timings = shown.expect(0).json();
        timings.as_array().unwrap().clone()
    };
    let _ = job.checkpoint(&["--kill"]).expect(0);
    let taken = timings(&job);
    assert_eq!(taken.len(), 1, "{taken:?}");
    job.kill_all();
    job.restore(&[]);
    // It is written a moment after the job runs.
    let all = wait_for("the times of the restore", || {
        Some(timings(&job)).filter(|all| all.len() == 2)
    });
    assert_eq!(all[0], taken[0]);
    for (timing, phase) in all.iter().zip(["freeze", "processes"]) {
        let phases = timing["phases"].as_array().unwrap();
        assert!(
            phases.iter().any(|found| found["name"] == phase),
            "{timing}"
        );
        let sum: f64 = phases
            .iter()
            .filter_map(|phase| phase["seconds"].as_f64())
            .sum();
        let total = timing["total_seconds"].as_f64().unwrap();
        assert!((sum - total).abs() < 1e-6, "{timing}");
    }
    let shown = run(job.ckptd("show").arg("--timing").arg(&job.name)).expect(0);
    for word in ["stood still", "restored from checkpoint 1", "pages"] {
        assert!(shown.stdout.contains(word), "it lacks {word}\n{shown}");
    }
    job.go();
    job.finish();
}

#[test]
fn a_job_that_runs_is_not_restored_beside_itself_by_dry_run() {
    let Some(mut job) = Job::start(&SUBJECT) else {
        return;
    };
    let _ = job.checkpoint(&[]).expect(0);
    let before = job.processes();
    let plan = run(job.ckptd("restore").arg("--dry-run").arg(&job.name)).expect(0);
    assert!(
        plan.stdout.lines().count() > 10,
        "a plan has more steps\n{plan}"
    );
    assert_eq!(job.processes(), before, "a dry run made or ended processes");
    job.go();
    job.finish();
}

#[test]
fn kill_ends_the_job_and_run_says_so() {
    let Some(mut job) = Job::start(&SUBJECT) else {
        return;
    };
    let _ = job.checkpoint(&["--kill"]).expect(0);
    assert_eq!(job.wait(), 128 + Signal::SIGKILL as i32, "{job}");
    assert!(job.processes().is_empty(), "{job}");
    job.go();
    job.restore(&[]);
    job.finish();
}

#[test]
fn any_checkpoint_can_be_restored_again_and_again() {
    let Some(mut job) = Job::start(&SUBJECT) else {
        return;
    };
    for _ in 0..3 {
        let _ = job.checkpoint(&[]).expect(0);
    }
    assert_eq!(job.manifests().len(), 3);
    for at in ["1", "3", "2"] {
        job.kill_all();
        let _ = fs::remove_file(job.work.join("told")); // the subject's own mark
        job.go();
        job.restore(&["--at", at]);
        job.finish();
    }
    let _ = run(job.ckptd("restore").args(["--at", "9"]).arg(&job.name))
        .expect(1)
        .expect_message(&["9"]);
}

#[test]
fn a_restored_job_can_be_checkpointed() {
    let Some(mut job) = Job::start(&SUBJECT) else {
        return;
    };
    let _ = job.checkpoint(&[]).expect(0);
    for _ in 0..3 {
        job.kill_all();
        job.restore(&[]);
        wait_for("the restored job to be reachable", || {
            (run(job.ckptd("checkpoint").arg(&job.name)).code() == 0).then_some(())
        });
    }
    job.go();
    job.finish();
}

#[test]
fn a_restore_passes_the_exit_status_and_signals_on() {
    for (how, expected) in [("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)] {
        let mut job = Job::prepare("status");
        let (ready, go) = (job.work.join("ready"), job.work.join("go"));
        let script = format!(
            ": >{}; while [ ! -e {} ]; do sleep 0.05; done; {how}",
            ready.display(),
            go.display()
        );
        job.run(&["sh", "-c", &script], &[]);
        wait_for("the job to start", || ready.exists().then_some(()));
        let _ = job.checkpoint(&[]).expect(0);
        job.kill_all();
        job.go();
        job.restore(&[]);
        assert_eq!(job.wait(), expected, "{how}\n{job}");
    }
    let mut job = Job::prepare("signal");
    let ready = job.work.join("ready");
    let script = format!(
        "trap 'exit 5' TERM; : >{}; while :; do sleep 0.05; done",
        ready.display()
    );
    job.run(&["sh", "-c", &script], &[]);
    wait_for("the job to start", || ready.exists().then_some(()));
    let _ = job.checkpoint(&[]).expect(0);
    job.kill_all();
    job.restore(&[]);
    wait_for("the job to be there again", || {
        job.processes()
            .into_iter()
            .find(|pid| state(*pid) == Some('S'))
    });
    let restorer = Pid::from_raw(job.supervisor().unwrap());
    let status = wait_for("the signal to arrive", || {
        let _ = kill(restorer, Signal::SIGTERM);
        (!alive(restorer.as_raw())).then(|| job.wait())
    });
    // Until the job is back, the signal ends the restore itself.
    assert!([5, 143].contains(&status), "status {status}\n{job}");
}

#[test]
fn a_detached_restore_leaves_a_pidfile() {
    let Some(mut job) = Job::start(&SUBJECT) else {
        return;
    };
    let _ = job.checkpoint(&[]).expect(0);
    job.kill_all();
    let pidfile = job.work.join("pidfile");
    let mut command = job.ckptd("restore");
    command
        .env("CKPTD_TEST_JOB", &job.name)
        .args(["--detach", "--pidfile"])
        .arg(&pidfile)
        .arg(&job.name);
    let _ = run(&mut command).expect(0);
    let pid: i32 = fs::read_to_string(&pidfile)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(alive(pid), "{job}");
    assert!(job.processes().contains(&pid), "{job}");
    let _ = run(job.ckptd("checkpoint").arg(&job.name)).expect(0);
    job.go();
    wait_for("the job to end", || {
        job.processes().is_empty().then_some(())
    });
}

#[test]
fn any_process_tree_can_be_checkpointed_by_pid() {
    if !is_root() {
        return skip("checkpoint --pid", "only root may checkpoint any process");
    }
    let Some(mut job) = Job::start_alone(&SUBJECT, &[]) else {
        return;
    };
    let pid = job.supervisor().unwrap().to_string();
    let output = run(job.ckptd("checkpoint").args(["--pid", &pid, "--json"])).expect(0);
    let name = output.json()["job"]
        .as_str()
        .unwrap_or_else(|| panic!("no job's name\n{output}"))
        .to_owned();
    job.kill_all();
    job.go();
    let mut command = job.ckptd("restore");
    command.arg(name);
    job.spawn(command);
    job.finish();
}

#[test]
fn prune_keeps_what_is_asked_for() {
    let Some(mut job) = Job::start(&SUBJECT) else {
        return;
    };
    for _ in 0..4 {
        let _ = job.checkpoint(&[]).expect(0);
    }
    // What a crash leaves behind: an unfinished segment, and a finished one that no manifest names.
    let segments = job.store.join(&job.name).join("segments");
    fs::write(
        segments.join("00112233445566778899aabbccddeeff.seg.tmp"),
        "unfinished",
    )
    .unwrap();
    fs::write(
        segments.join("ffeeddccbbaa99887766554433221100.seg"),
        "unnamed",
    )
    .unwrap();
    let _ = run(job.ckptd("prune").args(["--keep", "1"]).arg(&job.name)).expect(0);
    assert_eq!(job.stored().len(), 2, "{:?}", job.stored());
    let _ = run(job.ckptd("verify").arg(&job.name)).expect(0);
    job.kill_all();
    job.go();
    job.restore(&[]);
    job.finish();
}

#[test]
fn two_jobs_of_one_name_do_not_run_at_once() {
    let Some(mut job) = Job::start(&SUBJECT) else {
        return;
    };
    let output = run(job.ckptd("run").args(["--name", &job.name, "--", "true"]));
    assert_ne!(output.code(), 0, "{output}");
    let _ = output.expect_message(&[&job.name]);
    job.go();
    job.finish();
}

#[test]
fn a_name_cannot_lead_out_of_the_store() {
    let place = Place::new();
    for name in ["../x", "a/b", "", "."] {
        let mut command = Command::new(binary());
        command
            .arg("run")
            .arg("--dir")
            .arg(place.path().join("store"))
            .args(["--name", name, "--", "true"]);
        let output = run(&mut command);
        assert_ne!(output.code(), 0, "{}", show_command(&command));
    }
}

#[test]
fn completions_and_manual_pages_are_written() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(Command::new(binary()).args(["completions", shell])).expect(0);
        assert!(output.stdout.contains("checkpoint"), "{output}");
    }
    let place = Place::new();
    let _ = run(Command::new(binary()).arg("man").arg(place.path())).expect(0);
    for page in [
        "ckptd.1",
        "ckptd-run.1",
        "ckptd-checkpoint.1",
        "ckptd-restore.1",
    ] {
        assert!(place.path().join(page).is_file(), "no {page}");
    }
}
