"""What all tests share."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """Tests compare with tensors on the CPU; those of a GPU name it. Chapters do not come here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQREC_DEVICE", "cpu")
        yield
