"""The line about long work: on a terminal only, after two seconds, in place."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from fixtures import ROOT

_WORK = """
import sys, time
from sela_tf.compat import activity
activity.DELAY_SECONDS, activity._INTERVAL_SECONDS = 0.2, 0.05
with activity.Activity("evaluation", total=2) as work:
    work.begin("trained network")
    time.sleep(float(sys.argv[1]))
    work.begin("untrained network")
    time.sleep(float(sys.argv[1]))
print("done", flush=True)
"""


def on_a_terminal(seconds: float) -> str:
    """Returns the text that a terminal gets from work of two parts."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen([sys.executable, "-c", _WORK, str(seconds)], stdout=theirs, stderr=theirs, cwd=ROOT) as process:
        os.close(theirs)
        found = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:
                # Linux ends a terminal that nobody writes to any more by an error.
                break
            if not part:
                break
            found += part
    os.close(ours)
    assert process.returncode == 0
    return found.decode()


def test_a_terminal_shows_one_line_in_place():
    shown = on_a_terminal(1.0)
    assert "evaluation, 1 of 2: trained network, 00:0" in shown
    assert "evaluation, 2 of 2: untrained network, 00:0" in shown
    assert shown.count("\n") == 1
    # the line is gone before the next one is printed
    assert shown.rstrip().rpartition("\r")[2] == "done"


def test_short_work_is_not_shown():
    assert on_a_terminal(0.02).strip() == "done"


def test_nothing_is_printed_into_a_pipe():
    done = subprocess.run([sys.executable, "-c", _WORK, "0.3"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")
