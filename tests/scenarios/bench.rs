//! `cargo xtask bench` measures, writes its report, and tells what has become worse.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use tests::{Place, binary, is_root, run, skip};

/// The quickest scenarios, with the ckptd of the tests.
fn bench(out: &Path, arguments: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap();
    let mut places = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("xtask"));
    let xtask = places.find(|path| path.is_file());
    let mut command =
        Command::new(xtask.expect("no xtask beside the test programs: run `cargo build -p xtask`"));
    command
        .args([
            "bench", "--quick", "--runs", "1", "--only", "trivial", "--only", "launch",
        ])
        .arg("--ckptd")
        .arg(binary())
        .args([
            "--out".as_ref(),
            out.as_os_str(),
            "--dir".as_ref(),
            out.as_os_str(),
        ])
        .args(arguments)
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
    command
}

fn values<'a>(report: &'a mut Value, way: &str) -> Vec<&'a mut Value> {
    let scenarios = report["scenarios"].as_array_mut().unwrap().iter_mut();
    let ways = scenarios.flat_map(|scenario| scenario["ways"].as_array_mut().unwrap());
    let of_way = ways.filter(|found| found["name"] == way);
    of_way
        .flat_map(|found| found["values"].as_object_mut().unwrap().values_mut())
        .collect()
}

#[test]
fn a_report_is_written_and_compared() {
    if !is_root() {
        return skip("a_report_is_written_and_compared", "it needs root");
    }
    let place = Place::new();
    let _ = run(&mut bench(place.path(), &[])).expect(0);
    let page = fs::read_to_string(place.path().join("report.html")).unwrap();
    assert!(
        page.starts_with("<!doctype html>") && page.contains("<svg"),
        "{page}"
    );
    let path = place.path().join("report.json");
    let mut report: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // Checkpoint, stop, restore, image and memory of the one, and the launch of the other.
    assert_eq!(values(&mut report, "ckptd run").len(), 6, "{report}");

    // As if everything had been ten times as fast, and as small.
    for values in values(&mut report, "ckptd run") {
        for value in values.as_array_mut().unwrap() {
            *value = (value.as_f64().unwrap() / 10.0).into();
        }
    }
    let old = place.path().join("old.json");
    fs::write(&old, report.to_string()).unwrap();
    let compared = run(&mut bench(
        place.path(),
        &["--against", old.to_str().unwrap()],
    ));
    assert_eq!(compared.code(), 1, "{compared}");
    assert!(compared.stdout.contains("WORSE"), "{compared}");
}
