"""Ctrl-C while a command is still importing, which with torch takes seconds, is one line, too.

A command imports this before anything else, and only where it is the command: who imports it as a
module keeps the handler that is there.
"""

import os
import signal
import sys


def stop(_signal, _frame):
    """End at once: nothing is open yet."""
    os.write(2, f"\n{os.path.basename(sys.argv[0])}: stopped; nothing was begun\n".encode())
    os._exit(130)


def begin():
    """From now on Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def before_imports():
    """Nothing where Ctrl-C is ignored, as for jobs in the background."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
