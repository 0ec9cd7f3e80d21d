//! Holds off the packets of connections: dropped in both directions by rules of nftables, so that neither end hears of the other.
//!
//! While the job may still run on, the rules belong to a process (`flags owner`, Linux 5.12) that ends with us, and they with it. Once it
//! is to be killed they are made to last, until its restore takes them away.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long nft(8) may take, in ms.
const PATIENCE: u16 = 5000;

/// The two ends of a connection.
pub(crate) type Ends = (SocketAddr, SocketAddr);

/// Connections whose packets are dropped for as long as this is there.
pub(crate) struct Filter {
    ends: Vec<Ends>,
    nft: Child,
}

impl Filter {
    /// # Errors
    /// nft(8) is not there, or may not.
    pub(crate) fn new(ends: Vec<Ends>) -> io::Result<Self> {
        let mut command = Command::new("nft");
        command
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut this = Self {
            ends,
            nft: command.stderr(Stdio::null()).spawn()?,
        };
        let owned = format!("ckptd_{}", std::process::id());
        let text = rules(&owned, " { flags owner; }", &this.ends);
        if let Some(stdin) = &mut this.nft.stdin {
            // It is carried out in order, so that the answer to the last line means that all is done.
            writeln!(stdin, "{text}list tables")?;
        }
        let mut stdout = this.nft.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let mut wait = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
            if poll(&mut wait, PollTimeout::from(PATIENCE))? == 0 {
                return Err(io::Error::other("nft(8) does not take the rules"));
            }
            let length = stdout.read(&mut piece)?;
            answer.extend(&piece[..length]);
            if String::from_utf8_lossy(&answer).contains(&owned) {
                return Ok(this);
            }
            if length == 0 {
                return Err(io::Error::other("nft(8) may not"));
            }
        }
    }

    /// They stay when this goes.
    pub(crate) fn last(&self) -> io::Result<()> {
        for ends in &self.ends {
            run(&rules(&name(ends), "", std::slice::from_ref(ends)))?;
        }
        Ok(())
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        let _ = self.nft.kill();
        let _ = self.nft.wait();
    }
}

/// Lets the packets of a connection pass again.
pub(crate) fn lift(ends: &Ends) {
    // There may be none: the job ran on after its checkpoint.
    let _ = run(&format!("delete table inet {}\n", name(ends)));
}

/// Whether the packets of a connection were being held off for it.
pub(crate) fn is_there() -> io::Result<()> {
    run("list tables\n")
}

/// The table of a connection, the same at checkpoint and restore.
fn name((own, other): &Ends) -> String {
    let plain = |at: &SocketAddr| {
        let text = format!("{}_{}", at.ip().to_canonical(), at.port());
        text.replace(['.', ':'], "_")
    };
    format!("ckptd_{}_{}", plain(own), plain(other))
}

fn rules(table: &str, flags: &str, ends: &[Ends]) -> String {
    let mut text = format!("add table inet {table}{flags}\n");
    for hook in ["input", "output"] {
        let kind = format!("type filter hook {hook} priority -400; policy accept;");
        text += &format!("add chain inet {table} {hook} {{ {kind} }}\n");
        for (own, other) in ends {
            let (from, to) = if hook == "input" {
                (other, own)
            } else {
                (own, other)
            };
            let (source, target) = (from.ip().to_canonical(), to.ip().to_canonical());
            let family = if source.is_ipv4() { "ip" } else { "ip6" };
            let ips = format!("{family} saddr {source} {family} daddr {target}");
            let ports = format!("tcp sport {} tcp dport {}", from.port(), to.port());
            text += &format!("add rule inet {table} {hook} {ips} {ports} drop\n");
        }
    }
    text
}

fn run(text: &str) -> io::Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped());
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or_default();
    Err(io::Error::other(format!("nft(8) says: {first}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_both_families() {
        let ends = |own: &str, other: &str| (own.parse().unwrap(), other.parse().unwrap());
        let four = ends("10.0.0.1:5", "[::ffff:10.0.0.2]:6");
        assert_eq!(name(&four), "ckptd_10_0_0_1_5_10_0_0_2_6");
        let text = rules("x", "", &[four, ends("[::1]:1", "[::2]:2")]);
        assert!(text.contains("ip saddr 10.0.0.2 ip daddr 10.0.0.1 tcp sport 6 tcp dport 5 drop"));
        assert!(text.contains("ip6 saddr ::1 ip6 daddr ::2 tcp sport 1 tcp dport 2 drop"));
    }
}
