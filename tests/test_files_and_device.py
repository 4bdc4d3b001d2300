"""Files nobody ever reads half of, and the device to compute on."""

import errno
import os
import stat
import sys

import pytest
import torch

import seqrec_lib as sr
from seqrec_lib.device import has_bfloat16
from seqrec_lib.files import atomic_path
from seqrec_lib.study.provenance import describe


def test_the_new_file_takes_the_old_one_s_place_at_once(tmp_path):
    path = tmp_path / "new folder" / "results.json"
    with atomic_path(path) as temporary:
        temporary.write_text("first")
        assert temporary.parent == path.parent and temporary.suffix == ".tmp"
        assert not path.exists()
    with atomic_path(str(path)) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["results.json"]


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "x"
    with atomic_path(path) as one, atomic_path(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # the last to finish
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_fails_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("new, but only ha")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_alone(tmp_path, monkeypatch, call):
    path = tmp_path / "x"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"), atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        honest = getattr(os, name)
        spy = lambda *args, name=name, honest=honest: (order.append(name), honest(*args))  # noqa: E731
        monkeypatch.setattr(os, name, spy)
    with atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert order == ["fsync", "replace"]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
def test_what_is_published_is_as_readable_as_any_other_file(tmp_path):
    mask = os.umask(0o022)
    try:
        with atomic_path(tmp_path / "x") as temporary:
            temporary.write_text("new")
        assert os.umask(0o022) == 0o022  # left as it was
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


@pytest.mark.parametrize("cuda", [False, True])
def test_the_device_is_the_argument_s_then_the_variable_s_then_what_there_is(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.delenv("SEQREC_DEVICE", raising=False)
    assert sr.device().type == ("cuda" if cuda else "cpu")
    monkeypatch.setenv("SEQREC_DEVICE", "")
    assert sr.device().type == ("cuda" if cuda else "cpu")
    monkeypatch.setenv("SEQREC_DEVICE", "cpu")
    assert sr.device() == sr.device("auto") == torch.device("cpu")
    monkeypatch.setenv("SEQREC_DEVICE", "meta")
    assert sr.device("cpu").type == "cpu" and sr.device().type == "meta"


@pytest.mark.parametrize("given", ["argument", "variable"])
def test_cuda_where_there_is_none_is_an_error_with_a_remedy(monkeypatch, given):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SEQREC_DEVICE", "cuda:1" if given == "variable" else "cpu")
    with pytest.raises(RuntimeError, match="'cuda:1' was asked for.*unset SEQREC_DEVICE"):
        sr.device("cuda:1" if given == "argument" else "auto")


def test_a_device_that_is_not_seeded_or_not_there_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="seeds cpu, cuda, meta, and could repeat no run on 'mps'"):
        sr.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert sr.device("cuda:0").index == 0
    with pytest.raises(RuntimeError, match="'cuda:7' was asked for; CUDA devices: 1"):
        sr.device("cuda:7")


def test_bfloat16_is_left_to_processors_that_have_it(monkeypatch):
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for answers in ((False, False), (True, False), (False, True)):
        for name, answer in zip(asked, answers, strict=True):
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
        assert has_bfloat16(torch.device("cpu")) == any(answers)
        assert ("without bfloat16" in describe(torch.device("cpu"))) != any(answers)
    assert has_bfloat16(torch.device("cuda"))


def test_an_unknown_device_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="no device 'gpu'; give auto, cpu, cuda or cuda:1"):
        sr.device("gpu")
