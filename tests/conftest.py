"""What all tests share."""

import signal

import pytest

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """Tests compare with tensors on the CPU; those of a GPU name it. Chapters do not come here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQREC_DEVICE", "cpu")
        yield
