//! A virtual machine, emulated in software: it runs anywhere, an order of magnitude slower.

use super::guest::{BEGIN, CARRY, END};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Seconds after which a machine is switched off.
const LIMIT: &str = "2400";
const MEGABYTES: u32 = 1536;

/// Boots a kernel and gives the result of each test, in order, and what it has for the next machine.
pub(crate) fn boot(
    kernel: &Path,
    initrd: &Path,
    nodes: u8,
    log: &Path,
) -> Result<(Vec<(String, bool)>, String)> {
    let mut qemu = Command::new("timeout");
    qemu.args([
        "--kill-after=5",
        LIMIT,
        "qemu-system-x86_64",
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi",
    ])
    .args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
    ])
    .args(["-cpu", "max,la57=off", "-m", &format!("{MEGABYTES}M")])
    .args(["-smp", &(2 * nodes).to_string()])
    .arg("-kernel")
    .arg(kernel)
    .arg("-initrd")
    .arg(initrd)
    .args(["-append", &command_line()]);
    for node in 0..nodes {
        let (first, size) = (2 * node, MEGABYTES / u32::from(nodes));
        qemu.args([
            "-object",
            &format!("memory-backend-ram,id=m{node},size={size}M"),
        ])
        .args([
            "-numa",
            &format!(
                "node,nodeid={node},cpus={first}-{},memdev=m{node}",
                first + 1
            ),
        ]);
    }
    let child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn();
    let mut child = child.context("cannot run timeout qemu-system-x86_64")?;
    let mut log = File::create(log)?;
    let (mut results, mut carried) = (Results::default(), String::new());
    if let Some(console) = child.stdout.take() {
        for line in BufReader::new(console).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
            if let Some(piece) = line.strip_prefix(CARRY) {
                carried += piece;
                carried.push('\n');
                continue;
            }
            writeln!(log, "{line}")?;
            results.line(&line);
        }
    }
    child.wait()?;
    Ok((results.finish(), carried))
}

/// The emulated time stamp counter is this machine's, which a guest that has to find out its rate by itself gets wrong.
/// The kernel computes bogomips from that rate (`calibrate_delay()` in init/calibrate.c).
fn command_line() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let bogomips = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("bogomips")?.split(':').nth(1));
    let bogomips = bogomips.and_then(|number| number.trim().parse::<f64>().ok());
    let rate = bogomips.map_or_else(String::new, |mips| {
        format!(" tsc_early_khz={:.0}", mips * 500.0)
    });
    format!(
        "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on{rate}"
    )
}

/// Reads the results off the console.
#[derive(Default)]
struct Results {
    all: Vec<(String, bool)>,
    /// What is running.
    current: Option<String>,
    /// Everything has been run.
    done: bool,
}

impl Results {
    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix(BEGIN) {
            self.current = Some(name.to_owned());
            self.done = false;
        } else if let Some((name, status)) =
            line.strip_prefix(END).and_then(|end| end.rsplit_once(' '))
        {
            self.current = None;
            self.done = true;
            self.add(name.to_owned(), status == "0");
        } else if let (Some(program), Some(test)) = (&self.current, line.strip_prefix("test ")) {
            if let Some((name, result)) = test.split_once(" ... ") {
                let name = format!("{program} {name}");
                self.add(name, result == "ok");
            }
        } else if self.current.as_deref() == Some("doctor") || line.starts_with("SKIPPED ") {
            println!("  {line}");
        }
    }

    fn add(&mut self, name: String, good: bool) {
        println!("  {} {name}", if good { "ok    " } else { "FAILED" });
        self.all.push((name, good));
    }

    /// A machine that died, or was switched off, has not run everything.
    fn finish(mut self) -> Vec<(String, bool)> {
        if let Some(name) = self.current.take() {
            self.add(format!("{name} (it did not end)"), false);
        } else if !self.done {
            self.add("booting".to_owned(), false);
        }
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(console: &str) -> Vec<(String, bool)> {
        let mut results = Results::default();
        console.lines().for_each(|line| results.line(line));
        results.finish()
    }

    #[test]
    fn every_test_counts() {
        let console =
            "VMTEST BEGIN memory\ntest a::b ... ok\ntest c ... FAILED\nVMTEST END memory 101";
        let results = [
            ("memory a::b", true),
            ("memory c", false),
            ("memory", false),
        ];
        assert_eq!(
            read(console),
            results.map(|(name, good)| (name.to_owned(), good))
        );
    }

    #[test]
    fn a_machine_that_stops_has_failed() {
        assert!(!read("Kernel panic")[0].1);
        assert!(!read("VMTEST BEGIN memory\nKernel panic")[0].1);
    }
}
