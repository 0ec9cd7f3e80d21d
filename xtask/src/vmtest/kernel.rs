//! Kernels of the distribution.

use crate::shell::shown;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The newest kernel of the series `name` (`6.1`), from its package for clouds: without many modules, and with all that
/// is needed built in.
pub(crate) fn image(name: &str, folder: &Path) -> Result<PathBuf> {
    let place = folder.join(format!("linux-{name}"));
    if let Some(image) = find(&place.join("boot"), "vmlinuz-") {
        return Ok(image);
    }
    std::fs::create_dir_all(&place)?;
    let prefix = format!("linux-image-{name}.");
    let names = said(Command::new("apt-cache").args(["pkgnames", &prefix]))?;
    let newest = names
        .lines()
        .filter(|package| package.ends_with("-cloud-amd64"))
        .max_by_key(|package| numbers(package));
    let Some(package) = newest else {
        bail!(
            "apt knows no package {prefix}*-cloud-amd64; Debian 12 with its security updates has both kernels"
        );
    };
    println!("fetching {package}");
    said(
        Command::new("apt-get")
            .args(["-qq", "download", package])
            .current_dir(&place),
    )?;
    let file = find(&place, package).with_context(|| format!("apt-get left no {package}"))?;
    let archive = place.join("files.tar");
    let archive_text = archive.display().to_string();
    let made = std::fs::File::create(&archive)?;
    let mut unpack = Command::new("dpkg-deb");
    let status = unpack
        .arg("--fsys-tarfile")
        .arg(&file)
        .stdout(made)
        .status()?;
    if !status.success() {
        bail!("{}: {status}", shown(&unpack));
    }
    said(
        Command::new("tar")
            .args(["-xf", &archive_text, "./boot"])
            .current_dir(&place),
    )?;
    let _ = std::fs::remove_file(archive);
    find(&place.join("boot"), "vmlinuz-").with_context(|| format!("{package} holds no kernel"))
}

fn find(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(folder).ok()?.flatten();
    let found = entries.find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))?;
    Some(found.path())
}

/// The numbers in a package's name: 6.1.0-9 comes before 6.1.0-10.
fn numbers(package: &str) -> Vec<u64> {
    let words = package.split(|letter: char| !letter.is_ascii_digit());
    words.filter_map(|word| word.parse().ok()).collect()
}

/// What a command says, if all goes well.
fn said(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !output.status.success() {
        bail!(
            "{}: {}",
            shown(command),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
