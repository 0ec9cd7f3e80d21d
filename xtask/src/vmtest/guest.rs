//! What is in the machine: an initramfs of the programs to run, each at the path it has here, with its libraries.

use crate::shell::run;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Something to run.
pub(crate) struct Program {
    pub(crate) name: String,
    /// A function of the machine's first process that runs it.
    pub(crate) by: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Other programs that it runs.
    pub(crate) needs: Vec<PathBuf>,
}

/// Lines of the console that are for us: a program begins, and has ended with a status.
pub(crate) const BEGIN: &str = "VMTEST BEGIN ";
pub(crate) const END: &str = "VMTEST END ";
/// A piece of what one machine gives to the next, an archive in base64.
pub(crate) const CARRY: &str = "VMTEST CARRY ";

impl Program {
    /// The tests of a package. Two at a time: then the line of each is written at once, and not torn by what others say.
    pub(crate) fn test(name: &str, path: PathBuf, arguments: impl Iterator<Item = String>) -> Self {
        Self {
            name: name.to_owned(),
            by: "",
            path,
            arguments: std::iter::once("--test-threads=2".to_owned())
                .chain(arguments)
                .collect(),
            needs: Vec::new(),
        }
    }
}

/// What the machine's first process does.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin HOME=/ TERM=dumb
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run
for dir in /tmp /run /dev/shm; do mount -t tmpfs tmpfs $dir; done
mount -t devpts devpts /dev/pts; mount -t cgroup2 cgroup /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
chmod 1777 /tmp; ip link set lo up; hostname vmtest
one() {
    echo "VMTEST BEGIN $1"; name=$1; shift
    "$@" </dev/null 2>&1; echo "VMTEST END $name $?"
}
# Restores what another kernel has saved, if it is there, and saves the same for the next one.
carry() {
    mkdir -p /carry/work; cd /carry || return
    if [ -d store ]; then
        touch work/go
        "$1" restore vdso --dir store --dry-run | grep -q "map the old vdso" || return
        # Its output is a file, which it finds again.
        "$1" restore vdso --dir store
        cat out; grep -qx PASS out || return
        rm -rf store out work/*
    fi
    "$1" run --name vdso --dir store "$2" work > out 2>&1 &
    for turn in $(seq 600); do
        if grep -qx READY out; then
            "$1" checkpoint vdso --kill || return
            tar cz store work out | base64 | sed 's/^/VMTEST CARRY /'
            return 0
        fi
        sleep 0.1
    done
    cat out; return 1
}
"#;

/// Packs `programs` and what runs them; gives the initramfs.
pub(crate) fn pack(folder: &Path, programs: &[Program]) -> Result<PathBuf> {
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for dir in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let busybox = Path::new("/bin/busybox");
    let mut init = INIT.to_owned();
    add(&root, busybox)?;
    for program in programs {
        for path in program.needs.iter().chain([&program.path]) {
            add(&root, path)?;
        }
        let arguments = program.arguments.iter().map(|word| format!(" '{word}'"));
        let (name, path) = (&program.name, program.path.display());
        let by = program.by;
        init += &format!("one {name} {by} {path}{}\n", arguments.collect::<String>());
    }
    init += "reboot -f\n";
    fs::write(root.join("init"), init)?;
    run(Command::new("chmod").arg("755").arg(root.join("init")))?;

    let initrd = folder.join("initrd");
    let mut pack = Command::new(busybox);
    pack.args(["sh", "-c", "find . | busybox cpio -o -H newc"])
        .current_dir(&root);
    run(pack.stdout(File::create(&initrd)?).stderr(Stdio::null()))?;
    Ok(initrd)
}

/// Adds what another machine has given, an archive in base64, to an initramfs; gives the new one.
pub(crate) fn carry(folder: &Path, initrd: &Path, archive: &str) -> Result<PathBuf> {
    let root = folder.join("carried");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(root.join("carry"))?;
    fs::write(root.join("archive"), archive)?;
    let both = folder.join("initrd-carried");
    fs::copy(initrd, &both)?;
    // Archives may follow each other (Documentation/driver-api/early-userspace/buffer-format.rst).
    let script = "set -e; busybox base64 -d archive | busybox tar xz -C carry; find carry | busybox cpio -o -H newc";
    let mut pack = Command::new("/bin/busybox");
    pack.args(["sh", "-c", script]).current_dir(&root);
    let both_file = fs::OpenOptions::new().append(true).open(&both)?;
    run(pack.stdout(both_file).stderr(Stdio::null()))?;
    Ok(both)
}

/// A program, without what only a debugger needs, and its libraries.
fn add(root: &Path, path: &Path) -> Result<()> {
    let place = inside(root, path)?;
    if place.exists() {
        return Ok(());
    }
    run(Command::new("strip").arg("-o").arg(&place).arg(path))?;
    // Of a static program it says that there are none.
    let output = Command::new("ldd")
        .arg(path)
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let library = Path::new(library);
        fs::copy(library, inside(root, library)?)?;
    }
    Ok(())
}

fn inside(root: &Path, path: &Path) -> Result<PathBuf> {
    let place = root.join(path.strip_prefix("/").context("not a full path")?);
    fs::create_dir_all(place.parent().unwrap_or(root))?;
    Ok(place)
}
