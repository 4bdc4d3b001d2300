"""What all tests share."""

import signal

import hypothesis
import pytest

# How long an example takes says how busy the machine is, and nothing of the property.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("here")

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """Tests compare with tensors on the CPU; those of a GPU name it. Chapters do not come here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQREC_DEVICE", "cpu")
        yield
