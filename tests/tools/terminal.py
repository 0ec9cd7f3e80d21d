"""Drives a program on a pseudo-terminal: `terminal.py SCRIPT COMMAND...`.

SCRIPT is a file of steps, one a line, done in order:

    expect TEXT      waits until the terminal has shown TEXT (after what was expected before)
    send TEXT        types TEXT; \\n, \\x03 and the like are understood
    size ROWS COLS   changes the window's size
    mark FILE        makes a file in the current directory
    run COMMAND      runs a shell command elsewhere, which must succeed
    status N         waits for the end of the program, which must be exit status N

Ends with status 0 when every step worked; else it says which did not, and what the terminal showed.
"""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

PATIENCE = 60.0


def main() -> int:
    steps = [line.rstrip("\n") for line in open(sys.argv[1]) if line.strip()]
    pid, master = pty.fork()
    if pid == 0:
        os.execvp(sys.argv[2], sys.argv[2:])
    shown, position = b"", 0

    def read_more(timeout: float) -> bool:
        nonlocal shown
        if not select.select([master], [], [], timeout)[0]:
            return False
        try:
            data = os.read(master, 65536)
        except OSError:
            return False
        shown += data
        return bool(data)

    def fail(why: str) -> int:
        print(f"{why}\n--- the terminal showed\n{shown.decode(errors='replace')}\n---")
        os.kill(pid, signal.SIGKILL)
        return 1

    for step in steps:
        verb, _, rest = step.partition(" ")
        text = rest.encode().decode("unicode_escape").encode("latin-1")
        deadline = time.monotonic() + PATIENCE
        if verb == "expect":
            while (found := shown.find(text, position)) < 0:
                if time.monotonic() > deadline:
                    return fail(f"waited in vain: {step}")
                if not read_more(0.1):
                    time.sleep(0.01)
            position = found + len(text)
        elif verb == "send":
            os.write(master, text)
        elif verb == "mark":
            open(rest, "w").close()
        elif verb == "run":
            elsewhere = subprocess.Popen(
                rest, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            while elsewhere.poll() is None:
                read_more(0.01)
            if elsewhere.returncode != 0:
                return fail(f"{step}: status {elsewhere.returncode}\n{elsewhere.stdout.read().decode()}")
        elif verb == "size":
            rows, columns = map(int, rest.split())
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        elif verb == "status":
            while True:
                read_more(0.05)
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    break
                if time.monotonic() > deadline:
                    return fail(f"does not end: {step}")
            code = os.waitstatus_to_exitcode(status)
            code = code if code >= 0 else 128 - code
            if code != int(rest):
                return fail(f"ended with {code}: {step}")
        else:
            return fail(f"no such step: {step}")
    return 0


sys.exit(main())
