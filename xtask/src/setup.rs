//! `cargo xtask setup`: what building, the demonstration and the tests need, from the distribution's packages.

use crate::shell::{as_root, cargo, is_installed, is_root, run};
use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// A program, and the Debian package that holds it.
#[derive(Debug, Clone, Copy)]
struct Need {
    program: &'static str,
    package: &'static str,
    /// Nothing works without it; without the others, tests are skipped.
    vital: bool,
}

const COMPILER: Need = Need {
    program: "gcc",
    package: "gcc libc6-dev",
    vital: true,
};
/// For the programs that run in the kernel.
const KERNEL_COMPILER: Need = Need {
    program: "clang",
    package: "clang libbpf-dev",
    vital: true,
};
const TESTS: &[Need] = &[
    COMPILER,
    KERNEL_COMPILER,
    Need {
        program: "python3",
        package: "python3",
        vital: true,
    },
    Need {
        program: "musl-gcc",
        package: "musl-tools",
        vital: false,
    },
    Need {
        program: "go",
        package: "golang-go",
        vital: false,
    },
    Need {
        program: "nft",
        package: "nftables",
        vital: false,
    },
];

/// For virtual machines. A busybox without libraries packs smaller, and any other does too.
const MACHINES: &[Need] = &[
    COMPILER,
    KERNEL_COMPILER,
    Need {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        vital: true,
    },
    Need {
        program: "busybox",
        package: "busybox-static",
        vital: true,
    },
];

/// For tests in virtual machines.
pub(crate) fn for_machines() -> Result<()> {
    install(MACHINES)
}

/// For the demonstration.
pub(crate) fn for_demo() -> Result<()> {
    install(&[COMPILER, KERNEL_COMPILER])
}

/// For the tests.
pub(crate) fn everything() -> Result<()> {
    install(TESTS)?;
    for component in ["fmt", "clippy"] {
        if !has_cargo(component) {
            add_component(component);
        }
    }
    Ok(())
}

/// Whether `cargo COMPONENT` works.
pub(crate) fn has_cargo(component: &str) -> bool {
    let mut command = cargo();
    command
        .args([component, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn install(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs
        .iter()
        .filter(|need| !is_installed(need.program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing
        .iter()
        .flat_map(|need| need.package.split(' '))
        .collect();
    println!("installing {}", packages.join(", "));
    let vital = missing.iter().any(|need| need.vital);
    match apt(&packages) {
        Err(error) if !vital => println!("not installed, so some tests will be skipped: {error:#}"),
        done => done?,
    }
    Ok(())
}

fn apt(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !is_installed("apt-get") {
        bail!("apt-get is not there; install what these Debian packages hold: {list}");
    }
    if !is_root() && !is_installed("sudo") {
        bail!("neither root nor sudo; as root: apt-get install {list}");
    }
    let apt = |arguments: &[&str]| {
        let mut command = as_root("env");
        command
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"])
            .args(arguments);
        run(command.stdout(Stdio::null()))
    };
    // The lists may be old or missing; where they cannot be fetched, what is there may do.
    let updated = apt(&["update"]);
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
        .or_else(|error| updated.and(Err(error)))
        .with_context(|| format!("cannot install {list}"))
}

/// From rustup, else from the distribution. Without it a check is left out, and `test` says so.
fn add_component(component: &str) {
    let name = if component == "fmt" {
        "rustfmt"
    } else {
        component
    };
    let added = if is_installed("rustup") {
        run(Command::new("rustup").args(["component", "add", name]))
    } else {
        apt(&[if component == "fmt" {
            "rustfmt"
        } else {
            "rust-clippy"
        }])
    };
    if let Err(error) = added {
        println!("cargo {component} is not there: {error:#}");
    }
}
