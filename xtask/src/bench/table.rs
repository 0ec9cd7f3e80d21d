//! The scenarios. To add one: a line here; for a new kind of job, a program in benches/workloads; for something new that is done
//! to jobs, a module in kinds.

use super::kinds::{self, INCREMENTAL, LAUNCH, LAZY, RUNNING, WHOLE};
use super::scenario::{Place, Scenario};

type Words = &'static [&'static str];

const fn whole(
    name: &'static str,
    about: &'static str,
    program: &'static str,
    arguments: Words,
) -> Scenario {
    Scenario::new(name, &WHOLE, about, program, arguments)
}

/// A job that has so many MiB of memory, and writes to so many pages a second.
const fn writer(name: &'static str, about: &'static str, arguments: Words) -> Scenario {
    Scenario::new(name, &INCREMENTAL, about, "writer", arguments).quick(&["128", "330"])
}

const fn running(name: &'static str, about: &'static str, arguments: Words) -> Scenario {
    Scenario::new(name, &RUNNING, about, "busy", arguments)
}

const NOISE: &str = "memory that does not compress";
const NUMBERS: &str = "memory as the arrays of a numeric program";

#[rustfmt::skip] // A line each.
const SCENARIOS: &[Scenario] = &[
    whole("trivial", "a process with nothing in it", "trivial", &[]),
    whole("memory-1g-noise", NOISE, "memory", &["1024", "noise"]).quick(&["256", "noise"]),
    whole("memory-1g-numbers", NUMBERS, "memory", &["1024", "numbers"]).quick(&["256", "numbers"]),
    whole("memory-4g-noise", NOISE, "memory", &["4096", "noise"]).quick(&["512", "noise"]),
    whole("memory-4g-numbers", NUMBERS, "memory", &["4096", "numbers"]).quick(&["512", "numbers"]),
    whole("disk-1g-noise", NOISE, "memory", &["1024", "noise"]).quick(&["256", "noise"]).on(Place::Disk),
    whole("disk-1g-numbers", NUMBERS, "memory", &["1024", "numbers"]).quick(&["256", "numbers"]).on(Place::Disk),
    whole("disk-4g-noise", NOISE, "memory", &["4096", "noise"]).quick(&["512", "noise"]).on(Place::Disk),
    whole("disk-4g-numbers", NUMBERS, "memory", &["4096", "numbers"]).quick(&["512", "numbers"]).on(Place::Disk),
    whole("mappings", "10,000 mappings, a page of content in each", "mappings", &["10000"]).quick(&["2000"]),
    whole("files-1000", "1,000 open files", "files", &["1000"]),
    whole("files-10000", "10,000 open files", "files", &["10000"]).quick(&["2000"]),
    whole("threads-64", "64 threads that wait", "threads", &["64"]),
    whole("threads-500", "500 threads that wait", "threads", &["500"]),
    whole("many", "1,000 open files, 64 threads, 10,000 mappings", "many", &["1000", "64", "10000"]).quick(&["500", "16", "2000"]),
    whole("processes-64", "64 processes that wait at pipes", "processes", &["64"]),
    writer("writes-1%", "1 GiB, 1 % of its pages written a second", &["1024", "2621"]),
    writer("writes-10%", "1 GiB, 10 % of its pages written a second", &["1024", "26214"]).quick(&["128", "3277"]),
    writer("writes-50%", "1 GiB, 50 % of its pages written a second", &["1024", "131072"]).quick(&["128", "16384"]),
    writer("writes-2g", "2 GiB, 1 % of its pages written a second", &["2048", "5243"]),
    writer("writes-4g", "4 GiB, 1 % of its pages written a second", &["4096", "10486"]),
    writer("writes-8g", "8 GiB, 1 % of its pages written a second; images on disk", &["8192", "20972"]).on(Place::Disk),
    writer("writes-shared", "1 GiB that a child shares, 1 % of its pages written a second", &["1024", "2621", "1"]).quick(&["128", "330", "1"]),
    writer("writes-shared-2g", "2 GiB that a child shares, 1 % of its pages written a second", &["2048", "5243", "1"]).quick(&["128", "330", "1"]),
    writer("idle-4g", "4 GiB of which nothing is written", &["4096", "0"]).quick(&["512", "0"]),
    writer("writes-all", "1 GiB, written as fast as it can", &["1024", "-1"]).quick(&["128", "-1"]),
    Scenario::new("lazy-1g", &LAZY, "1 GiB", "worker", &["1024", "5"]).quick(&["256", "5"]),
    Scenario::new("lazy-4g", &LAZY, "4 GiB", "worker", &["4096", "5"]).quick(&["512", "5"]),
    Scenario::new("lazy-disk", &LAZY, "1 GiB, images on disk", "worker", &["1024", "5"]).quick(&["256", "5"]).on(Place::Disk),
    Scenario::new("lazy-slow", &LAZY, "512 MiB, images on a disk that gives 100 MiB a second", "worker", &["512", "5"]).quick(&["128", "5"]).on(Place::Throttled(100)),
    running("run-cpu", "arithmetic in registers", &["cpu"]),
    running("run-stream", "a = b + 3 c on arrays of 64 MiB, without huge pages", &["stream"]),
    running("run-stream-thp", "the same with huge pages", &["stream", "huge"]),
    running("run-stencil", "the mean of four neighbours in a field of 32 MiB, without huge pages", &["stencil"]),
    running("run-stencil-thp", "the same with huge pages", &["stencil", "huge"]),
    running("run-open", "open a file, close it", &["open"]),
    running("run-mmap", "map 64 KiB, write to it, unmap it", &["mmap"]),
    running("run-fork", "fork a child that ends", &["fork"]),
    running("run-exec", "start a program that ends", &["exec"]),
    running("run-pipe", "a byte to another process and back", &["pipe"]),
    running("run-threads", "start a thread that ends", &["threads"]),
    Scenario::new("launch", &LAUNCH, "`true`", "true", &[]),
];

/// All of them, with the programs of the machine.
pub(super) fn scenarios() -> Vec<Scenario> {
    let mut all = SCENARIOS.to_vec();
    all.extend(kinds::apps());
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_scenario_has_a_name_of_its_own() {
        let names: HashSet<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
    }
}
