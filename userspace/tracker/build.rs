//! Compiles the programs of `ebpf/`. They are relocated to the running kernel's structures when they are loaded, so one
//! object serves all kernels.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

const PROGRAMS: [&str; 6] = ["descriptors", "job", "mappings", "tasks", "threads", "undo"];

fn main() {
    let sources =
        PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../../ebpf");
    let output = PathBuf::from(env::var("OUT_DIR").unwrap_or_default());
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rerun-if-env-changed=CLANG");
    for program in PROGRAMS {
        let source = sources.join(format!("{program}.bpf.c"));
        let done = Command::new(&clang)
            .args([
                "-target", "bpf", "-O2", "-g", "-mcpu=v3", "-Wall", "-Werror", "-c",
            ])
            .arg(&source)
            .arg("-o")
            .arg(output.join(format!("{program}.bpf.o")))
            // What clang has to say goes to cargo's report of a failed build.
            .output();
        let said = match done {
            Ok(done) if done.status.success() => continue,
            Ok(done) => String::from_utf8_lossy(&done.stderr).into_owned(),
            Err(error) => format!("{clang}: {error}"),
        };
        eprintln!(
            "\ncannot compile {}, which runs in the kernel:\n{said}\n\
             clang (14 or later) and the headers of libbpf are needed: `cargo xtask setup`, \
             or as root: apt-get install clang libbpf-dev\n\
             (where clang has another name, set CLANG)\n",
            source.display()
        );
        exit(1);
    }
}
