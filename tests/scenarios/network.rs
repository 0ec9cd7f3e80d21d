//! Jobs that are connected to processes outside of them: refused, found reset, or kept.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use tests::{Job, Subject, is_root, skip};

/// A job, and our end of its connection; it has sent more than we have read.
fn connected() -> Option<(Job, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello\n").unwrap();
        stream.set_read_timeout(Some(tests::PATIENCE)).unwrap();
        stream
    });
    let job = Job::start_with(&Subject::new("tcp_outside"), &[&port])?;
    Some((job, server.join().unwrap()))
}

/// Reads all that the job sends, and checks that it is that.
fn read_all(stream: &mut TcpStream) {
    let mut got = vec![0; 3 << 20];
    stream.read_exact(&mut got).unwrap();
    let mut state = 7u64.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    for (at, byte) in got.iter().enumerate() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        assert_eq!(*byte, state as u8, "byte {at} of what the job sent");
    }
}

fn has_nft() -> bool {
    let mut command = std::process::Command::new("nft");
    command
        .args(["list", "tables"])
        .output()
        .is_ok_and(|output| output.status.success())
}

fn go_on(job: &mut Job, mut stream: TcpStream) {
    stream.write_all(b"meanwhile").unwrap();
    job.go();
    read_all(&mut stream);
    stream.write_all(b"done").unwrap();
    job.finish();
}

#[test]
fn refused_with_the_peers_address() {
    let Some((mut job, stream)) = connected() else {
        return;
    };
    let peer = stream.local_addr().unwrap().to_string();
    let output = job.checkpoint(&["--kill"]).expect(1);
    let _ = output.expect_message(&[&peer, "descriptor 77", "--tcp close or keep"]);
    assert!(job.stored().is_empty());
    go_on(&mut job, stream);
}

#[test]
fn found_reset() {
    let Some((mut job, stream)) = connected() else {
        return;
    };
    let _ = job.checkpoint(&["--tcp", "close"]).expect(0);
    job.kill_all();
    drop(stream);
    fs::write(job.work.join("closed"), "").unwrap();
    job.go();
    job.restore(&[]);
    job.finish();
}

/// The peer hears nothing from the kill to the restore, and what it says meanwhile arrives.
fn kept(checkpoint: &[&str], restore: &[&str]) {
    if !has_nft() || !is_root() {
        return skip("a connection that is kept", "needs nft(8), and to be root");
    }
    let Some((mut job, mut stream)) = connected() else {
        return;
    };
    let arguments = [&["--kill", "--tcp", "keep"], checkpoint].concat();
    let _ = job.checkpoint(&arguments).expect(0);
    job.kill_all();
    stream.write_all(b"meanwhile").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    job.go();
    job.restore(restore);
    read_all(&mut stream);
    stream.write_all(b"done").unwrap();
    job.finish();
}

#[test]
fn kept_full() {
    kept(&[], &[]);
}

#[test]
fn kept_incremental() {
    kept(&["--incremental"], &["--incremental"]);
}

#[test]
fn kept_lazily() {
    kept(&[], &["--lazy"]);
}

/// Looking at it does nothing to the connection of a job that runs on.
#[test]
fn looked_at() {
    let Some((mut job, stream)) = connected() else {
        return;
    };
    if !is_root() {
        return skip("looked_at", "needs to be root");
    }
    for _ in 0..5 {
        let _ = job.checkpoint(&["--tcp", "keep"]).expect(0);
    }
    go_on(&mut job, stream);
}

/// What was kept cannot be had twice, nor closed at the restore against its will.
#[test]
fn kept_and_still_there() {
    let Some((mut job, stream)) = connected() else {
        return;
    };
    if !has_nft() || !is_root() {
        return skip("kept_and_still_there", "needs nft(8), and to be root");
    }
    let _ = job.checkpoint(&["--tcp", "keep"]).expect(0);
    let peer = stream.local_addr().unwrap().to_string();
    let refused = tests::run(job.ckptd("restore").arg("--dry-run").arg(&job.name)).expect(3);
    let _ = refused.expect_message(&[&peer, "--tcp close"]);
    job.kill_all();
    fs::write(job.work.join("closed"), "").unwrap();
    job.go();
    job.restore(&["--tcp", "close"]);
    job.finish();
}
