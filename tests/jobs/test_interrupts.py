"""A signal interrupts, and is not forgotten where somebody swallows the exception."""

import os
import signal
from contextlib import suppress

import pytest

from jobs.interrupts import signals_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_and_raised_again(number: int) -> None:
    before = signal.getsignal(number)
    with signals_interrupt() as raise_if_it_has_come:
        raise_if_it_has_come()
        with suppress(KeyboardInterrupt):  # somebody else's code
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            raise_if_it_has_come()
    assert signal.getsignal(number) is before
