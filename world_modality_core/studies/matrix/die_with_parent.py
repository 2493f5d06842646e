"""Become a command that ends when the process that started it ends, however that ends (Linux).

    python die_with_parent.py <pid of the starter> <command> ...

A queue that is killed must not leave trainings behind: the queue that goes on would run them twice.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>; kept across exec

if __name__ == "__main__":
    starter, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != starter:  # it ended before this line
            sys.exit("its starter is gone")
    os.execvp(command[0], command)
