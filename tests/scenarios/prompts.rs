//! Programs at their prompts: saved there in each mode, brought back on the terminal of the restore, and typed at again.

#![allow(clippy::panic)] // A scenario fails by panicking.

use std::fs;
use std::process::Command;

use tests::{Place, binary, manifest_dir, run, skip};

/// Arguments of the checkpoint and of the restore.
const MODES: [(&str, &str); 3] = [("", ""), ("--no-bpf", "--lazy"), ("--incremental", "")];

/// Steps of `tools/terminal.py` before the checkpoint, and after the restore until the program ends.
#[track_caller]
fn at_the_prompt(program: &str, command: &str, before: &str, after: &str) {
    let there = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output();
    if !there.is_ok_and(|output| output.status.success()) {
        return skip(program, "it is not installed");
    }
    for (checkpoint, restore) in MODES {
        let place = Place::new();
        let (ckptd, dir) = (binary(), place.path().display());
        let ckptd = ckptd.display();
        // Other tests are at the prompt of the same program.
        let own = place.path().file_name().unwrap_or_default();
        let name = format!("prompt-{program}-{}", own.display());
        let steps = format!(
            "send PS1='shell''> '\\n\nexpect shell>\n\
             send TERM=xterm {ckptd} run --name {name} --dir {dir}/store -- {command}\\n\n\
             {before}\n\
             run {ckptd} checkpoint --kill --dir {dir}/store {checkpoint} {name}\n\
             expect shell>\n\
             send {ckptd} restore --dir {dir}/store {restore} {name}\\n\n\
             {after}\n\
             expect shell>\nsend exit 0\\n\nstatus 0\n"
        )
        .replace("$DIR", &dir.to_string())
        .replace("$NAME", &name);
        let script = place.path().join("steps");
        fs::write(&script, steps).unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        let mut driver = Command::new("python3");
        driver
            .arg(manifest_dir().join("tools/terminal.py"))
            .arg(script);
        driver.args(["bash", "--norc", "--noprofile", "-i"]);
        driver
            .env("HISTFILE", "")
            .env("TERM", "dumb")
            .env_remove("TMUX");
        let output = run(driver.current_dir(place.path()));
        assert!(output.code() == 0, "[{checkpoint}] [{restore}] {output}");
    }
}

#[test]
fn bash() {
    at_the_prompt(
        "bash",
        "bash --norc --noprofile -i",
        "send x=41\\n\nsend sleep 1000 &\\n\nexpect [1]\nsend echo $((x))y\\n\nexpect 41y",
        "send echo $((x+1))z\\n\nexpect 42z\nsend jobs\\n\nexpect Running\nsend kill %1; wait; exit 0\\n\nexpect exit",
    );
}

/// A program in the foreground of a shell of the job's is stopped and goes on by job control.
#[test]
fn bash_with_a_program_in_front() {
    at_the_prompt(
        "bash",
        "bash --norc --noprofile -i",
        "send PS1='inner''> '\\n\nexpect inner>\nsend echo th''ere; cat\\n\nexpect there\nsend before\\n\nexpect before\nexpect before",
        "run sleep 1\nsend after\\n\nexpect after\nexpect after\nsend \\x1a\nexpect Stopped\nexpect inner>\nsend fg\\n\nexpect cat\n\
         send again\\n\nexpect again\nexpect again\nsend \\x03\nexpect inner>\nsend exit 0\\n\nexpect exit",
    );
}

#[test]
fn python() {
    at_the_prompt(
        "python3",
        "python3 -q",
        "expect >>>\nsend x = 41\\n\nexpect >>>\nsend print(x)\\n\nexpect 41\nexpect >>>",
        "send print(x + 1)\\n\nexpect 42\nexpect >>>\nsend exit()\\n",
    );
}

#[test]
fn vim() {
    at_the_prompt(
        "vim",
        "vim -u NONE -n $DIR/text",
        "expect [New\nsend ihello\nexpect hello",
        "send  world\\x1b:wq\\n\nexpect written\nrun grep -qx 'hello world' $DIR/text",
    );
}

#[test]
fn gdb() {
    at_the_prompt(
        "gdb",
        "gdb -q -nx",
        "expect (gdb)\nsend set $x = 41\\n\nexpect (gdb)\nsend print $x\\n\nexpect = 41\nexpect (gdb)",
        "send print $x + 1\\n\nexpect = 42\nexpect (gdb)\nsend quit\\n",
    );
}

/// A server, which is nobody's child, its client, and a shell on a terminal of the server's.
#[test]
fn tmux() {
    at_the_prompt(
        "tmux",
        "tmux -L $NAME -f /dev/null new bash --norc --noprofile",
        "expect bash-\nsend x=41\\n\nsend echo $((x))y\\n\nexpect 41y",
        "send echo $((x+1))z\\n\nexpect 42z\nsend exit\\n\nexpect [exited]",
    );
}
