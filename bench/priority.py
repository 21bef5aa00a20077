"""Keeps what is measured from being disturbed by others on the machine."""

import contextlib
import os


@contextlib.contextmanager
def real_time():
    """Runs what is started inside, and this process, before all ordinary work; where the host refuses that, with it.

    A core runs nothing else meanwhile, so that a turn should be a few seconds at most.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
