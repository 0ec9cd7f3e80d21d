//! timerfd_create(2): clock, time left, period, and expirations not yet read.

use images::proto::open_file::Kind;
use images::proto::{Process, TimerFd};
use remote::sys;

use super::{Held, Making, Shell, Why};

const TFD_TIMER_ABSTIME: u32 = 1;
const TFD_TIMER_CANCEL_ON_SET: u32 = 2;
/// include/uapi/linux/timerfd.h
const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
/// A timer with less time than this left may fire while it is read.
const CLOSE: u64 = 50_000;

pub(crate) fn capture(held: &Held) -> Result<Kind, Why> {
    let unreadable = |error: std::io::Error| {
        let why = format!("its time cannot be read: {error}");
        (why, "report this kernel".to_owned())
    };
    for _ in 0..16 {
        // Asking for the time makes a periodic timer that has fired count its periods so far (fs/timerfd.c, do_timerfd_gettime).
        let (interval, remaining) = sys::timerfd_time(&held.file).map_err(unreadable)?;
        let info = sys::fdinfo(&held.file).map_err(unreadable)?;
        let mut timer = parse(&info);
        if timer.interval != 0 && (remaining < CLOSE || timer.remaining < CLOSE) && interval > CLOSE
        {
            continue;
        }
        if timer.interval == 0 && timer.ticks != 0 {
            timer.remaining = 0;
        }
        let realtime = matches!(
            timer.clock,
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM
        );
        if realtime && timer.remaining != 0 && settime_flags(&info) & TFD_TIMER_ABSTIME != 0 {
            timer.deadline = sys::clock(libc::CLOCK_REALTIME) + timer.remaining;
        }
        return Ok(Kind::Timerfd(timer));
    }
    let why = "it fires all the time".to_owned();
    Err((why, "try again".to_owned()))
}

fn field<'a>(info: &'a str, name: &str) -> &'a str {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    info.lines().find_map(value).unwrap_or_default().trim()
}

fn settime_flags(info: &str) -> u32 {
    u32::from_str_radix(field(info, "settime flags"), 8).unwrap_or(0)
}

/// fs/timerfd.c, timerfd_show.
fn parse(info: &str) -> TimerFd {
    // "(1, 49406829)": seconds and nanoseconds.
    let time = |name| {
        let text = field(info, name).trim_matches(['(', ')']);
        let (seconds, nanoseconds) = text.split_once(", ").unwrap_or_default();
        seconds.parse().unwrap_or(0) * 1_000_000_000 + nanoseconds.parse().unwrap_or(0)
    };
    TimerFd {
        clock: field(info, "clockid").parse().unwrap_or(0),
        interval: time("it_interval"),
        remaining: time("it_value"),
        deadline: 0,
        cancel_on_set: settime_flags(info) & TFD_TIMER_CANCEL_ON_SET != 0,
        ticks: field(info, "ticks").parse().unwrap_or(0),
    }
}

pub(crate) fn open(shell: &mut Shell, timer: &TimerFd, flags: u32) -> u32 {
    let flags = flags as i32 & libc::O_NONBLOCK;
    let args = [timer.clock.into(), flags.into()];
    shell.open(libc::SYS_timerfd_create, &args, "make a timerfd")
}

/// Sets the timers going that `process` has made, last of all.
pub(crate) fn arm(shell: &mut Shell, making: &Making<'_>, process: &Process) {
    for (fd, file) in making.made_in_place(process) {
        let Some(Kind::Timerfd(timer)) = &file.kind else {
            continue;
        };
        if timer.remaining != 0 {
            let split = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
            let (value, mut flags) = match timer.deadline {
                0 => (timer.remaining, 0),
                deadline => (deadline, TFD_TIMER_ABSTIME),
            };
            if timer.cancel_on_set && timer.deadline != 0 {
                flags |= TFD_TIMER_CANCEL_ON_SET;
            }
            let value = [split(timer.interval), split(value)].concat();
            let value = shell.program.words(&value);
            let args = [fd.into(), flags.into(), value.into(), 0.into()];
            let label = format!("set the timer of descriptor {fd}");
            shell.program.must(libc::SYS_timerfd_settime, &args, label);
        }
        if timer.ticks != 0 {
            let ticks = shell.program.words(&[timer.ticks]);
            let args = [fd.into(), TFD_IOC_SET_TICKS.into(), ticks.into()];
            let label = format!("{} expirations not yet read", timer.ticks);
            shell.program.must(libc::SYS_ioctl, &args, label);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn fdinfo() {
        let info = "pos:\t0\nclockid: 1\nticks: 10\nsettime flags: 01\nit_value: (2, 221141)\nit_interval: (0, 1000000)\n";
        let timer = super::parse(info);
        assert_eq!((timer.clock, timer.ticks), (1, 10));
        assert_eq!(
            (timer.remaining, timer.interval),
            (2_000_221_141, 1_000_000)
        );
    }
}
