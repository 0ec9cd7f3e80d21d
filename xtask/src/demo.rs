//! `cargo xtask demo`: a numeric job is saved while it computes, killed, and brought back; its result is that of a
//! run that nobody disturbed.

use crate::setup;
use crate::shell::{as_root, cargo, root, run, target};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Steps of the computation
    #[arg(long, default_value_t = 16_000, value_parser = clap::value_parser!(u32).range(400..))]
    steps: u32,
}

/// Where everything lies.
struct Stage {
    dir: PathBuf,
    ckptd: PathBuf,
    heat: PathBuf,
    steps: String,
}

pub(crate) fn execute(args: &Args) -> Result<()> {
    setup::for_demo()?;
    let stage = prepare(args)?;
    println!(
        "1. A plate of 770 x 770 points heats up: two processes of two threads each, shared memory, a pipe, a log."
    );
    println!("   One run is left alone; the same program runs under ckptd beside it.");
    let mut alone = stage.start_alone()?;
    let mut supervised = stage.start_supervised()?;
    let outcome = stage.interrupt(&mut supervised);
    if outcome.is_err() {
        // Nothing of ours stays behind.
        kill(&processes_of(supervised.id()));
        let _ = alone.kill();
    }
    let _ = supervised.wait();
    outcome?;
    println!("6. Waiting for the run that was left alone.");
    let status = alone.wait()?;
    ensure!(
        status.success(),
        "the run that was left alone ended with {status}"
    );
    stage.compare()
}

fn prepare(args: &Args) -> Result<Stage> {
    println!("building ckptd and the program");
    run(cargo().args(["build", "--quiet", "--release", "--package", "ckptd"]))?;
    let dir = target().join("demo");
    if dir.exists() {
        // Left by an earlier run as root.
        fs::remove_dir_all(&dir).or_else(|_| run(as_root("rm").arg("-rf").arg(&dir)))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let stage = Stage {
        ckptd: target().join("release/ckptd"),
        heat: dir.join("heat"),
        steps: args.steps.to_string(),
        dir,
    };
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-pthread", "-o"])
        .arg(&stage.heat)
        .arg(root().join("xtask/demo/heat.c"));
    run(&mut gcc)?;
    Ok(stage)
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn output(&self, name: &str) -> Result<Stdio> {
        let path = self.path(name);
        Ok(fs::File::create(&path)
            .with_context(|| format!("cannot write {}", path.display()))?
            .into())
    }

    /// `ckptd VERB --dir STORE`.
    fn ckptd(&self, verb: &str) -> Command {
        let mut command = as_root(&self.ckptd);
        command.arg(verb).arg("--dir").arg(self.path("store"));
        command
    }

    fn start_alone(&self) -> Result<Child> {
        let mut command = Command::new(&self.heat);
        command
            .arg(&self.steps)
            .arg(self.path("alone.log"))
            .stdout(self.output("alone.out")?);
        command.spawn().context("cannot start the program")
    }

    fn start_supervised(&self) -> Result<Child> {
        let mut command = self.ckptd("run");
        command
            .args(["--name", "heat", "--"])
            .arg(&self.heat)
            .arg(&self.steps)
            .arg(self.path("saved.log"));
        command
            .stdout(self.output("saved.out")?)
            // A restore cuts the job's files back, and this must not be one of them when it goes to a file.
            .stderr(self.output("saved.err")?)
            .spawn()
            .context("cannot start ckptd")
    }

    /// Saves the job, lets it go on, kills it, and brings it back to its end.
    fn interrupt(&self, supervised: &mut Child) -> Result<()> {
        self.wait_for_reports(supervised, 8)?;
        println!("2. It is saved while it computes, {}:", self.progress());
        run(self.ckptd("checkpoint").arg("heat"))?;
        self.wait_for_reports(supervised, 16)?;
        let victims = processes_of(supervised.id());
        println!(
            "3. It went on, {}. Now all of it is killed with SIGKILL: {}.",
            self.progress(),
            listed(&victims)
        );
        kill(&victims);
        let _ = supervised.wait();
        println!("4. What was saved:");
        run(&mut self.ckptd("list"))?;
        println!("5. It is brought back, and runs to its end:");
        let out = fs::OpenOptions::new()
            .append(true)
            .open(self.path("saved.out"))?;
        run(self.ckptd("restore").arg("heat").stdout(out))?;
        Ok(())
    }

    /// Until the log of the supervised run has so many lines.
    fn wait_for_reports(&self, supervised: &mut Child, count: usize) -> Result<()> {
        while self.reports().len() < count {
            if let Some(status) = supervised.try_wait()? {
                let said = fs::read_to_string(self.path("saved.err")).unwrap_or_default();
                bail!(
                    "the program under ckptd has ended too early, with {status} (a larger --steps gives more time)\n{said}"
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn reports(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("saved.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn progress(&self) -> String {
        let done = self
            .reports()
            .last()
            .and_then(|line| line.split(':').next())
            .unwrap_or("step 0")
            .to_owned();
        format!("after {done} of {}", self.steps)
    }

    fn compare(&self) -> Result<()> {
        let read = |name: &str| {
            fs::read_to_string(self.path(name))
                .with_context(|| format!("cannot read {}", self.path(name).display()))
        };
        let (alone, saved) = (read("alone.out")?, read("saved.out")?);
        println!("\n   left alone:                    {}", alone.trim());
        println!("   saved, killed, brought back:   {}", saved.trim());
        ensure!(!alone.is_empty() && alone == saved, "the results differ");
        let (alone, saved) = (read("alone.log")?, read("saved.log")?);
        ensure!(
            alone == saved,
            "the logs differ: see {}",
            self.dir.display()
        );
        println!(
            "\nThe results are the same, bit for bit, and so are the {} lines of the log.",
            alone.lines().count()
        );
        Ok(())
    }
}

/// A process and all that descend from it.
fn processes_of(top: u32) -> Vec<u32> {
    let mut found = vec![top];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let tasks = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(
                children
                    .split_ascii_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    found
}

fn kill(pids: &[u32]) {
    let mut command = as_root("kill");
    let _ = command
        .arg("-KILL")
        .args(pids.iter().map(u32::to_string))
        .stderr(Stdio::null())
        .status();
}

fn listed(pids: &[u32]) -> String {
    pids.iter()
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
