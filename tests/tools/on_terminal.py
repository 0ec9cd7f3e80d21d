"""A job that tells what it sees of its terminal: window size, foreground group, signals, typed lines."""

import fcntl
import os
import select
import signal
import struct
import sys
import termios


def size() -> str:
    rows, columns = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))[:2]
    return f"{rows}x{columns}"


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def lines():
    """Typed lines. A handler runs at once, also for a signal that comes just before a wait: reading would sleep through it."""
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    typed = b""
    while True:
        ready = select.select([0, wake], [], [])[0]
        if wake in ready:
            os.read(wake, 64)
        if 0 in ready:
            data = os.read(0, 4096)
            if not data:
                return
            typed += data
            while b"\n" in typed:
                line, _, typed = typed.partition(b"\n")
                yield line.decode().strip()


signal.signal(signal.SIGWINCH, lambda *_: say("WINCH", size()))
signal.signal(signal.SIGINT, lambda *_: say("INT"))
signal.signal(signal.SIGCONT, lambda *_: say("CONT"))
terminal = all(os.isatty(fd) for fd in range(3))
say("START", "terminal" if terminal else "none", size(), "foreground" if os.tcgetpgrp(0) == os.getpgrp() else "background")
for line in lines():
    if line == "quit" or not line:
        break
    say("LINE", line, size(), "foreground" if os.tcgetpgrp(0) == os.getpgrp() else "background")
sys.exit(9)
