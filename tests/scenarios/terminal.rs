//! Jobs on terminals: `run` is invisible there too, and a restored job is at home on the terminal of its `restore`.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use tests::{Place, binary, manifest_dir, run};

/// Types and expects on a terminal on which `words` run, step by step as `tools/terminal.py` has them.
#[track_caller]
fn on_terminal(place: &Place, words: &[OsString], steps: &str) {
    let script = place.path().join("steps");
    fs::write(&script, steps).unwrap();
    let mut command = Command::new("python3");
    command
        .arg(manifest_dir().join("tools/terminal.py"))
        .arg(script)
        .args(words);
    let output = run(command
        .env("HISTFILE", "")
        .env("TERM", "dumb")
        .current_dir(place.path()));
    assert!(output.code() == 0, "{output}");
}

fn words(list: &[&str]) -> Vec<OsString> {
    list.iter().map(OsString::from).collect()
}

/// The command line of the job under `ckptd run`.
fn under_run(place: &Place, name: &str) -> Vec<OsString> {
    let mut line = vec![binary().into_os_string()];
    line.extend(words(&["run", "--name", name, "--dir"]));
    line.push(place.path().join("store").into());
    line.extend(words(&["--", "python3"]));
    line.push(manifest_dir().join("tools/on_terminal.py").into());
    line
}

fn joined(line: &[OsString]) -> String {
    line.iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

const TYPING: &str = "
expect START terminal
expect foreground
send one\\n
expect LINE one
size 44 155
expect WINCH 44x155
send \\x03
expect INT
send two\\n
expect LINE two 44x155 foreground
send quit\\n
status 9
";

#[test]
fn without_ckptd() {
    let place = Place::new();
    let mut line = words(&["python3"]);
    line.push(manifest_dir().join("tools/on_terminal.py").into());
    on_terminal(&place, &line, TYPING);
}

#[test]
fn run_is_invisible() {
    let place = Place::new();
    on_terminal(&place, &under_run(&place, &name(&place)), TYPING);
}

/// A job's name that no other test has.
fn name(place: &Place) -> String {
    place
        .path()
        .file_name()
        .unwrap()
        .to_string_lossy()
        .trim_start_matches('.')
        .to_owned()
}

#[test]
fn job_control_works() {
    let place = Place::new();
    let line = joined(&under_run(&place, &name(&place)));
    let steps = format!(
        "
send PS1='prompt''> '\\n
expect prompt>
send {line}\\n
expect START terminal
expect foreground
send \\x1a
expect Stopped
expect prompt>
send echo at the shell\\n
expect at the shell
expect at the shell
expect prompt>
send fg\\n
expect CONT
send back\\n
expect LINE back
expect foreground
send quit\\n
expect prompt>
send exit 4\\n
status 4
"
    );
    on_terminal(
        &place,
        &words(&["bash", "--norc", "--noprofile", "-i"]),
        &steps,
    );
}

#[test]
fn a_job_moves_to_the_terminal_of_its_restore() {
    let place = Place::new();
    let name = name(&place);
    let ckptd = binary();
    let store = place.path().join("store");
    // A script starts the job in the foreground and checkpoints it from the background, once a line was typed.
    let line = joined(&under_run(&place, &name));
    let script = place.path().join("session.sh");
    let text = format!(
        "(until [ -e {dir}/sign ]; do sleep 0.05; done; {ckptd} checkpoint --kill --dir {store} {name}) &\n\
         {line}\necho ended with $?\nwait $!\necho checkpoint $?\n",
        dir = place.path().display(),
        ckptd = ckptd.display(),
        store = store.display(),
    );
    fs::write(&script, text).unwrap();
    on_terminal(
        &place,
        &[OsString::from("bash"), script.into()],
        "
expect START terminal
send one\\n
expect LINE one
mark sign
expect ended with 137
expect checkpoint 0
status 0
",
    );
    let mut line = vec![ckptd.into_os_string()];
    line.extend(words(&["restore", "--dir"]));
    line.push(store.into());
    line.push(name.into());
    on_terminal(
        &place,
        &line,
        "
size 44 155
send two\\n
expect LINE two 44x155 foreground
send \\x03
expect INT
size 30 99
expect WINCH 30x99
send quit\\n
status 9
",
    );
}
