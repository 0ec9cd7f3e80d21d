//! Interval timers (setitimer(2)) and POSIX timers (timer_create(2)), with the time they had left.

use images::proto::{IntervalTimer, PosixTimer};
use remote::sys;
use remote::{Blob, Expect, Outcome, Program};

const SIGEV_THREAD_ID: i32 = 4;
/// prctl(2), Linux 6.15.
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;

pub(crate) struct Questions {
    interval: Vec<(u32, Blob)>,
    posix: Vec<(PosixTimer, Blob, usize)>,
}

/// `known` is what /proc/PID/timers says; its timers are asked for their times.
pub(crate) fn ask(program: &mut Program, known: Vec<PosixTimer>) -> Questions {
    let interval = (0..3u32).map(|which| {
        let old = program.output(32);
        program.must(
            libc::SYS_getitimer,
            &[which.into(), old.into()],
            "read an interval timer",
        );
        (which, old)
    });
    let interval = interval.collect();
    let posix = known.into_iter().map(|timer| {
        let time = program.output(32);
        program.must(
            libc::SYS_timer_gettime,
            &[timer.id.into(), time.into()],
            "read a POSIX timer",
        );
        let overrun = program.try_call(
            libc::SYS_timer_getoverrun,
            &[timer.id.into()],
            "read a timer's overrun",
        );
        (timer, time, overrun)
    });
    let posix = posix.collect();
    Questions { interval, posix }
}

/// Parses /proc/PID/timers (fs/proc/base.c, show_timer).
pub(crate) fn parse(text: &str) -> Vec<PosixTimer> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        if name == "ID" {
            timers.push(PosixTimer {
                id: value.parse().unwrap_or(-1),
                ..Default::default()
            });
            continue;
        }
        let Some(timer) = timers.last_mut() else {
            continue;
        };
        match name {
            "signal" => {
                let (signal, pointer) = value.split_once('/').unwrap_or((value, "0"));
                timer.signal = signal.parse().unwrap_or(0);
                timer.value =
                    u64::from_str_radix(pointer.trim_start_matches("0x"), 16).unwrap_or(0);
            }
            "notify" => {
                // "signal/pid.123", "none/tid.124", ...
                let (how, whom) = value.split_once('/').unwrap_or((value, ""));
                timer.notify = match how {
                    "none" => libc::SIGEV_NONE,
                    "thread" => libc::SIGEV_THREAD,
                    _ => libc::SIGEV_SIGNAL,
                };
                if let Some(tid) = whom.strip_prefix("tid.") {
                    timer.notify |= SIGEV_THREAD_ID;
                    timer.tid = tid.parse().unwrap_or(0);
                }
            }
            "ClockID" => timer.clock = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    timers.sort_by_key(|timer| timer.id);
    timers
}

fn words(bytes: &[u8]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    }
    words
}

impl Questions {
    pub(crate) fn answers(self, outcome: &Outcome) -> (Vec<IntervalTimer>, Vec<PosixTimer>) {
        let interval = self.interval.iter().filter_map(|&(which, blob)| {
            let [interval_s, interval_us, left_s, left_us] = words(outcome.output(blob));
            let (interval, remaining) = (
                interval_s * 1_000_000 + interval_us,
                left_s * 1_000_000 + left_us,
            );
            // ITIMER_REAL is set anew when its signal is taken from the queue (kernel/signal.c, dequeue_signal): until then nothing remains.
            let waits = which == libc::ITIMER_REAL as u32 && remaining == 0 && interval != 0;
            let remaining = if waits { interval } else { remaining };
            (remaining != 0).then_some(IntervalTimer {
                which,
                interval,
                remaining,
            })
        });
        let posix = self.posix.into_iter().map(|(mut timer, blob, overrun)| {
            let [interval_s, interval_ns, left_s, left_ns] = words(outcome.output(blob));
            timer.interval = interval_s * 1_000_000_000 + interval_ns;
            timer.remaining = left_s * 1_000_000_000 + left_ns;
            timer.overrun = outcome.results[overrun].max(0) as i32;
            timer
        });
        (interval.collect(), posix.collect())
    }
}

/// Makes the process's POSIX timers, not yet running. `restore_ids`: the kernel takes the id we want; else ids count up from 0
/// in a new process, and those in between are made and deleted.
pub(crate) fn create(program: &mut Program, timers: &[PosixTimer], restore_ids: bool) {
    if timers.is_empty() {
        return;
    }
    let mode = |program: &mut Program, on: u64| {
        let args = [PR_TIMER_CREATE_RESTORE_IDS.into(), on.into()];
        program.must(libc::SYS_prctl, &args, "choose timer ids ourselves");
    };
    if restore_ids {
        mode(program, 1);
    }
    let mut next = 0;
    for timer in timers {
        while !restore_ids && next < timer.id {
            let id = program.bytes((-1i32).to_ne_bytes());
            program.must(
                libc::SYS_timer_create,
                &[0.into(), 0.into(), id.into()],
                "make a timer to skip its id",
            );
            program.call(
                libc::SYS_timer_delete,
                &[next.into()],
                Expect::Success,
                "delete it again",
            );
            next += 1;
        }
        // struct sigevent: value, signal, notify, tid.
        let mut event = timer.value.to_ne_bytes().to_vec();
        for word in [timer.signal, timer.notify, timer.tid as i32] {
            event.extend(word.to_ne_bytes());
        }
        event.resize(64, 0);
        let event = program.bytes(event);
        let id = program.bytes(timer.id.to_ne_bytes());
        let args = [timer.clock.into(), event.into(), id.into()];
        program.must(
            libc::SYS_timer_create,
            &args,
            format!("make timer {}", timer.id),
        );
        next = timer.id + 1;
    }
    if restore_ids {
        mode(program, 0);
    }
}

/// A tick of the kernel, 1 / CONFIG_HZ: the resolution of its coarse clocks (kernel/time/posix-timers.c, KTIME_LOW_RES).
fn tick_us() -> u64 {
    sys::clock_resolution(libc::CLOCK_REALTIME_COARSE) / 1000
}

/// Sets all timers going, with the time they had left.
/// A periodic one whose signal `is_pending` fires at once, to be pending again.
pub(crate) fn arm(
    program: &mut Program,
    interval: &[IntervalTimer],
    posix: &[PosixTimer],
    is_pending: &dyn Fn(&PosixTimer) -> bool,
) {
    for timer in interval {
        let split = |us: u64| [us / 1_000_000, us % 1_000_000];
        // Those of CPU time are given a tick more than is asked for (kernel/time/itimer.c, set_cpu_itimer).
        let more = match timer.which {
            which if which == libc::ITIMER_REAL as u32 => 0,
            _ => tick_us(),
        };
        let remaining = timer.remaining.saturating_sub(more).max(1);
        let value = program.words(&[split(timer.interval), split(remaining)].concat());
        program.must(
            libc::SYS_setitimer,
            &[timer.which.into(), value.into(), 0.into()],
            "set an interval timer",
        );
    }
    for timer in posix.iter().filter(|timer| timer.remaining != 0) {
        let split = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
        let remaining = if timer.interval != 0 && is_pending(timer) {
            1
        } else {
            timer.remaining
        };
        let value = program.words(&[split(timer.interval), split(remaining)].concat());
        let args = [timer.id.into(), 0.into(), value.into(), 0.into()];
        program.must(
            libc::SYS_timer_settime,
            &args,
            format!("set timer {}", timer.id),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_timers() {
        let timers = parse(
            "ID: 3\nsignal: 0/0000000000000000\nnotify: none/pid.7\nClockID: 1\nID: 1\nsignal: 34/00007ffc12\nnotify: signal/tid.9\nClockID: 0\n",
        );
        assert_eq!(timers.len(), 2);
        assert_eq!(
            (timers[0].id, timers[0].signal, timers[0].value),
            (1, 34, 0x7f_fc12)
        );
        assert_eq!((timers[0].notify, timers[0].tid), (SIGEV_THREAD_ID, 9));
        assert_eq!((timers[1].notify, timers[1].clock), (libc::SIGEV_NONE, 1));
    }
}
