"""Ctrl-C as people type it who mean it."""

import signal
import time

from fusionflow import stopping


def interrupt_twice(send, is_alive):
    """Send SIGINT, and once more if the process is still there, later than an echo would come."""
    send(signal.SIGINT)
    time.sleep(2 * stopping.ECHO)
    if is_alive():
        send(signal.SIGINT)
