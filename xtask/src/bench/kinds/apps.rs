//! Real programs, with a checkpoint now and then and without.

use crate::bench::metric::Metric;
use crate::bench::scenario::{Kind, Sample, Scenario, Turn, Way};
use crate::bench::session::launch;
use crate::bench::tool::Which;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

pub(in crate::bench) static APPS: Kind = Kind {
    title: "Real programs",
    about: "From the start of the program to its end, bare and with a checkpoint every ten seconds. The programs are those of the folder that \
            CKPTD_APPS names, as far as they are installed. What they work out is compared with what is expected, or else with what the bare run worked out.",
    ways: &[
        Way::of("bare", Which::Bare),
        Way::of("ckptd run --every 10s", Which::Ckptd).run(&[
            "--incremental",
            "--every",
            "10s",
            "--keep",
            "1",
        ]),
        Way::of("dmtcp --interval 10", Which::Dmtcp).run(&["--no-gzip", "--interval", "10"]),
    ],
    metrics: &[TIME],
    plotted: 1,
    measure,
};

const TIME: Metric = Metric::seconds("time", "run time");

/// A scenario for each program of the folder.
pub(in crate::bench) fn found() -> Vec<Scenario> {
    let Some(folder) = std::env::var_os("CKPTD_APPS") else {
        return Vec::new();
    };
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut programs: Vec<PathBuf> = entries
        .map(|entry| entry.path().join("run.sh"))
        .filter(|script| script.is_file() && script.with_file_name("check.sh").is_file())
        .collect();
    programs.sort();
    // These live as long as the table.
    let scenario = |script: &PathBuf| -> Option<Scenario> {
        let name = script.parent()?.file_name()?.to_str()?;
        let program: &'static str = script.to_str()?.to_owned().leak();
        Some(Scenario::new(
            format!("app-{name}").leak(),
            &APPS,
            "",
            program,
            &[],
        ))
    };
    programs.iter().filter_map(scenario).collect()
}

fn measure(turn: &Turn) -> Result<Sample> {
    let script = Path::new(turn.scenario.program);
    let dir = turn.scratch.join("job");
    fs::create_dir_all(turn.scratch.join("images"))?;
    prepare(script, &dir, turn.scratch)?;
    let mut command = launch(turn, &format!("bench-{}", std::process::id()), script)?;
    let log = turn.scratch.join("start.log");
    command.arg("exec").arg(&dir);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?);
    let since = Instant::now();
    let status = command.status()?;
    let time = since.elapsed().as_secs_f64();
    let said = fs::read_to_string(&log).unwrap_or_default();
    ensure!(status.success(), "{status}\n{}", said.trim());
    if turn.way.tool != Which::Bare && time > 15.0 {
        ensure!(
            fs::read_dir(turn.scratch.join("images"))?.count() > 0,
            "no checkpoint was taken\n{}",
            said.trim()
        );
    }
    check(turn, script, &dir)?;
    let mut sample = Sample::default();
    sample.add(TIME, time);
    Ok(sample)
}

/// Has the program's inputs made, but nothing installed.
fn prepare(script: &Path, dir: &Path, scratch: &Path) -> Result<()> {
    let stubs = scratch.join("stubs");
    fs::create_dir_all(&stubs)?;
    let stub = stubs.join("apt-get");
    fs::write(
        &stub,
        "#!/bin/sh\necho \"not installed: $*\" >&2\nkill $PPID\n",
    )?;
    fs::set_permissions(&stub, fs::Permissions::from_mode(0o755))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(script)
        .arg("prep")
        .arg(dir)
        .env("PATH", format!("{}:{path}", stubs.display()))
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !output.status.success() {
        bail!(
            "not prepared: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn check(turn: &Turn, script: &Path, dir: &Path) -> Result<()> {
    let check = |arguments: &[&str]| -> Result<(bool, String)> {
        let check = script.with_file_name("check.sh");
        let output = Command::new(&check)
            .arg(dir)
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        ))
    };
    let (_, result) = check(&["--print"])?;
    let bare = turn.programs.join(format!("{}.result", turn.scenario.name));
    if turn.way.tool == Which::Bare {
        ensure!(!result.is_empty(), "it has no result");
        fs::write(&bare, &result)?;
        return Ok(());
    }
    let (right, said) = check(&[])?;
    ensure!(
        right || fs::read_to_string(&bare).is_ok_and(|bare| bare == result),
        "{said}"
    );
    Ok(())
}
