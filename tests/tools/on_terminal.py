"""A job that tells what it sees of its terminal: window size, foreground group, signals, typed lines."""

import fcntl
import os
import signal
import struct
import sys
import termios


def size() -> str:
    rows, columns = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))[:2]
    return f"{rows}x{columns}"


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


signal.signal(signal.SIGWINCH, lambda *_: say("WINCH", size()))
signal.signal(signal.SIGINT, lambda *_: say("INT"))
signal.signal(signal.SIGCONT, lambda *_: say("CONT"))
terminal = all(os.isatty(fd) for fd in range(3))
say("START", "terminal" if terminal else "none", size(), "foreground" if os.tcgetpgrp(0) == os.getpgrp() else "background")
while True:
    line = sys.stdin.readline().strip()
    if line == "quit" or not line:
        sys.exit(9)
    say("LINE", line, size(), "foreground" if os.tcgetpgrp(0) == os.getpgrp() else "background")
