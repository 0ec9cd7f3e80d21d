//! Jobs that run while their memory is in the image, when those who bring it in die, or storage fails.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{Job, Storage, Subject, Trouble, alive, run, wait_for};

const PAGING: Subject = Subject::new("paging");

/// The job, saved and gone.
fn saved(mebibytes: &str) -> Option<Job> {
    let mut job = Job::start_with(&PAGING, &[mebibytes])?;
    let _ = job.checkpoint(&["--compress", "none"]).expect(0);
    job.kill_all();
    job.go();
    Some(job)
}

/// Its page server; none when it has ended.
fn server(job: &Job) -> Option<Pid> {
    let serves = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).nth(1) == Some(b"serve")
    };
    job.processes().into_iter().find(serves).map(Pid::from_raw)
}

#[test]
fn another_page_server_takes_over() {
    let Some(mut job) = saved("200") else { return };
    job.restore(&["--lazy"]);
    let mut killed = 0;
    while killed < 15 {
        if let Some(server) = server(&job) {
            let _ = kill(server, Signal::SIGKILL);
            killed += 1;
        }
        if job.ended().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(2 * killed));
    }
    assert!(killed > 0, "there was no page server\n{job}");
    wait_for("the job to end", || {
        job.output().ends_with("PASS\n").then_some(())
    });
}

#[test]
fn the_job_waits_when_all_of_ckptd_is_killed() {
    let Some(mut job) = saved("200") else { return };
    job.restore(&["--lazy"]);
    let stopped = wait_for("the page server", || server(&job));
    // The restore needs it, but not for long.
    wait_for("the restore", || {
        kill(stopped, Signal::SIGSTOP).unwrap();
        let listed = run(job.ckptd("list").arg("--json")).json();
        let runs = listed[0]["pid"].is_number();
        if !runs {
            kill(stopped, Signal::SIGCONT).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        runs.then_some(())
    });
    let supervisor = Pid::from_raw(job.supervisor().unwrap());
    kill(supervisor, Signal::SIGKILL).unwrap();
    kill(stopped, Signal::SIGKILL).unwrap();
    wait_for("ckptd to die", || (!alive(stopped.as_raw())).then_some(()));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(job.output(), "READY\n", "{job}");
    let said = run(&mut job.ckptd("list")).stdout;
    assert!(said.contains("running"), "{said}");
    let mut attach = std::process::Command::new(tests::binary());
    let _ = run(attach.arg("attach").arg(&job.name)).expect(0);
    wait_for("the job to end", || {
        job.output().ends_with("PASS\n").then_some(())
    });
}

#[test]
fn a_checkpoint_has_all_of_the_memory() {
    let Some(mut job) = saved("200") else { return };
    fs::remove_file(job.work.join("go")).unwrap();
    job.restore(&["--lazy"]);
    job.await_running();
    let _ = job.checkpoint(&[]).expect(0);
    job.kill_all();
    job.go();
    job.restore(&[]);
    job.finish();
}

#[test]
fn what_was_touched_first_is_known_the_next_time() {
    let Some(mut job) = saved("200") else { return };
    let learned = job.store.join(&job.name).join("working-set");
    for _ in 0..2 {
        job.restore(&["--lazy"]);
        wait_for("what was touched", || {
            fs::metadata(&learned).ok().filter(|file| file.len() > 0)
        });
        job.kill_all();
    }
    // Nobody believes it.
    fs::write(&learned, [0x0a, 4, 1, 2, 3, 4, 0x12, 4, 1, 2, 3, 4]).unwrap();
    job.restore(&["--lazy"]);
    job.finish();
}

#[test]
fn a_staged_copy_is_read_and_a_damaged_one_is_not() {
    let Some(mut job) = saved("24") else { return };
    fs::remove_file(job.work.join("go")).unwrap();
    let stage = job.work.join("stage");
    let options = ["--stage", stage.to_str().unwrap()];
    job.restore(&options);
    let copy = stage.join(&job.name);
    wait_for("the copy", || {
        copy.join("000001.ckpt").exists().then_some(())
    });
    job.kill_all();
    // Now only the copy has every page.
    let segments = job.store.join(&job.name).join("segments");
    let damage = |from: &std::path::Path| {
        for entry in fs::read_dir(from).unwrap().flatten() {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(entry.path());
            let file = file.unwrap();
            let middle = file.metadata().unwrap().len() / 2;
            let mut byte = [0];
            file.read_exact_at(&mut byte, middle).unwrap();
            file.write_all_at(&[byte[0] ^ 4], middle).unwrap();
        }
    };
    damage(&segments);
    job.go();
    for lazy in [&["--lazy"][..], &[]] {
        job.restore(&[&options, lazy].concat());
        job.finish();
    }
    // Healed, and the copy is damaged instead.
    damage(&segments);
    damage(&copy.join("segments"));
    job.restore(&[&options[..], &["--lazy"]].concat());
    job.finish();
}

#[test]
fn what_is_damaged_is_never_read() {
    let Some(mut job) = saved("24") else { return };
    let mut segments = job.stored();
    segments.retain(|path| path.extension().is_some_and(|end| end == "seg"));
    let segment = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&segments[0])
        .unwrap();
    let middle = segment.metadata().unwrap().len() / 2;
    let mut byte = [0];
    segment.read_exact_at(&mut byte, middle).unwrap();
    segment.write_all_at(&[byte[0] ^ 4], middle).unwrap();
    job.restore(&["--lazy", "--patience", "1"]);
    ends_by_sigbus(&mut job);
}

/// The job ends by the signal, and ckptd has said why.
fn ends_by_sigbus(job: &mut Job) {
    let code = job.wait();
    // That its children died the job may say, but not that a page holds anything else.
    let output = job.output();
    assert!(
        code == 128 + Signal::SIGBUS as i32 && !output.contains("page "),
        "{code}\n{job}"
    );
    assert!(job.to_string().contains("SIGBUS"), "nobody said it\n{job}");
}

#[test]
fn huge_pages_are_huge_again() {
    let Some(mut job) = saved("1") else { return };
    fs::remove_file(job.work.join("go")).unwrap();
    let huge = |job: &Job| {
        let listed = run(job.ckptd("list").arg("--json")).json();
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", listed[0]["pid"]));
        let text = smaps.unwrap_or_default();
        let sizes = text.lines().filter_map(|line| {
            let size = line.strip_prefix("AnonHugePages:")?.strip_suffix("kB")?;
            size.trim().parse::<u64>().ok()
        });
        sizes.sum::<u64>()
    };
    job.restore(&[]);
    job.await_running();
    let before = huge(&job);
    if before == 0 {
        return tests::skip("huge_pages_are_huge_again", "this kernel gives none");
    }
    job.kill_all();
    job.restore(&["--lazy"]);
    job.await_running();
    wait_for("huge pages", || (huge(&job) >= before).then_some(()));
    job.go();
    job.finish();
}

/// The segment that has the job's memory, on storage in trouble.
fn in_trouble(job: &Job, trouble: Trouble) -> Option<Storage> {
    let segments = job.stored().into_iter();
    let mut segments = segments.filter(|path| path.extension().is_some_and(|end| end == "seg"));
    let size = |path: &std::path::PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
    let largest = segments.by_ref().max_by_key(size);
    Storage::over(&largest.expect("a segment"), trouble)
}

/// What of the job's memory is in, and all of it, as `ckptd list` says; none when all is in.
fn progress(job: &Job) -> Option<(u64, u64)> {
    let listed = run(job.ckptd("list").arg("--json")).json();
    let pages = &listed[0]["memory"];
    Some((pages["done"].as_u64()?, pages["total"].as_u64()?))
}

#[test]
fn a_checkpoint_names_what_is_missing_where_it_was() {
    let Some(mut job) = saved("100") else { return };
    fs::remove_file(job.work.join("go")).unwrap();
    let storage = in_trouble(&job, Trouble::Slow(20));
    job.restore(&["--lazy", "--incremental"]);
    job.await_running();
    let small = |job: &Job| {
        let said = job
            .checkpoint(&["--incremental", "--json"])
            .expect(0)
            .json();
        let bytes = said["bytes"].as_u64().unwrap();
        assert!(bytes < 32 << 20, "{bytes} bytes were written\n{job}");
    };
    (0..3).for_each(|_| small(&job));
    if let Some(storage) = &storage {
        // Reading all takes seconds longer.
        let (done, total) = progress(&job).expect("memory that is missing");
        assert!(done < total, "{done} of {total}");
        storage.set(Trouble::Slow(0));
    }
    wait_for("all of the memory", || {
        progress(&job).is_none().then_some(())
    });
    // Who watches the writes now has watched them all the while.
    small(&job);
    assert!(
        !job.to_string().contains("cannot be checkpointed"),
        "what is ckptd's own is taken for the job's\n{job}"
    );
    for sequence in ["2", "4", "5"] {
        job.kill_all();
        // What ckptd tells of its progress goes to the job's log.
        job.restore(&["--at", sequence, "--files", "keep"]);
        job.await_running();
    }
    job.go();
    job.finish();
}

/// The job runs while its storage is in trouble, and when that is over it finds all of its memory.
fn survives(trouble: Trouble) {
    let Some(mut job) = saved("24") else { return };
    let Some(storage) = in_trouble(&job, Trouble::Slow(1)) else {
        return;
    };
    job.restore(&["--lazy"]);
    job.await_running();
    storage.set(trouble);
    std::thread::sleep(Duration::from_millis(1500));
    storage.set(Trouble::Slow(0));
    job.finish();
}

#[test]
fn storage_fails_for_a_while() {
    survives(Trouble::Fails);
}

#[test]
fn storage_hangs_for_a_while() {
    survives(Trouble::Hangs);
}

#[test]
fn storage_is_cut_short_for_a_while() {
    survives(Trouble::Short);
}

#[test]
fn storage_gives_other_bytes_for_a_while() {
    survives(Trouble::Lies);
}

/// Of what can never be read again, nothing else is read.
fn gives_up(trouble: Trouble) {
    let Some(mut job) = saved("100") else { return };
    let Some(storage) = in_trouble(&job, Trouble::Slow(5)) else {
        return;
    };
    job.restore(&["--lazy", "--patience", "1"]);
    job.await_running();
    storage.set(trouble);
    ends_by_sigbus(&mut job);
}

#[test]
fn storage_fails_for_good() {
    gives_up(Trouble::Fails);
}

#[test]
fn storage_is_cut_short_for_good() {
    gives_up(Trouble::Short);
}
