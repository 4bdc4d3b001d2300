"""Bad settings of a grid: said when it is loaded, by name and value, and not one failed run later.

What a grid's lists and blocks mean is tested in ``test_study.py``.
"""

import re

import pytest
import torch

from seqrec_lib.study.grid import load_grid

WORLD = {"datasets": ["world-markov"]}


def refuses(grid, *words):
    """The grid is refused, and the message has these words in this order."""
    with pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, words))):
        load_grid(grid)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": -3}, "epochs must be at least 1, got -3"),
        ({"epochs": 1e3}, "epochs must be a whole number, got 1000.0"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"patience": "x"}, "patience must be a whole number or None, got 'x'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": "x"}, "lr must be a number, got 'x'"),
        ({"lr": -1}, "lr must be above 0 and finite, got -1"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"warmup": -5}, "warmup must be at least 0, got -5"),
        ({"schedule": "linear"}, "schedule must be 'constant' or 'cosine', not 'linear'"),
        ({"precision": "float16"}, "precision must be 'float32' or 'bfloat16', not 'float16'"),
        ({"monitor": "x"}, "monitor must be 'HR@K', 'NDCG@K' or 'MRR', not 'x'"),
        ({"monitor": 3}, "monitor must be a string, got 3"),
        ({"filter_seen": "no"}, "filter_seen must be true or false, got 'no'"),
        ({"dropout": 7}, "dropout probability has to be between 0 and 1, but got 7"),
        ({"dropout": "x"}, "dropout must be a number, got 'x'"),
        ({"dim": 8, "num_heads": 3}, "dim=8 cannot be divided among num_heads=3"),
        ({"dim": 8.0}, "dim must be a whole number, got 8.0"),
        ({"max_len": 0}, "max_len must be at least 1, got 0"),
        ({"norm": "x"}, "norm must be one of post, pre, original, not 'x'"),
        ({"models": ["stosa"], "attentions": ["wasserstein"], "mean_attention": 2},
         "mean_attention must be true or false, got 2"),
        ({"models": ["markov"], "prior": "x"}, "prior must be a number, got 'x'"),
        ({"data": 5}, "data must be a table of settings, got 5"),
        ({"data": {"num_user": 5}}, "markov has no setting data.num_user; it has num_users"),
        ({"data": {"num_users": 5.5}}, "data.num_users must be a whole number, got 5.5"),
        ({"weighting": 3}, "weighting must be a table of settings, got 3"),
        ({"weighting": {"name": "uniform"}}, "Softmax has no setting weighting.name"),
        ({"attentions": ["random"], "weighting": {"seed": "x"}},
         "weighting.seed must be a whole number, got 'x'"),
    ],
)  # fmt: skip
def test_a_setting_that_no_run_could_use_is_refused(settings, words):
    refuses({"runs": [WORLD, {**WORLD, "variant": "bad", **settings}]}, "block 2", words)


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"losses": ["none"]}, "no loss 'none'; there are ce"),
        ({"attentions": ["none"]}, "no attention 'none'; there are softmax"),
        ({"splits": [3]}, "no split 3; there are leave-one-out"),
        ({"models": [["sasrec"]]}, "no model ['sasrec']; there are sasrec"),
        ({"datasets": "beauty"}, "datasets must be a list of one or more, got 'beauty'"),
        ({"models": []}, "models must be a list of one or more, got []"),
        ({"seeds": 3}, "seeds must be a list of one or more, got 3"),
        ({"seeds": [0, -1]}, "seeds must be whole numbers of at least 0, got -1"),
        ({"seeds": ["a"]}, "seeds must be whole numbers of at least 0, got 'a'"),
        ({"seeds": [0.5]}, "seeds must be whole numbers of at least 0, got 0.5"),
        ({"seeds": [True]}, "seeds must be whole numbers of at least 0, got True"),
        ({"variant": 3}, "variant = 3 names a file; it must be a string"),
    ],
)
def test_a_list_that_is_none_is_refused(lists, words):
    refuses({"runs": [{**WORLD, **lists}]}, "block 1", words)


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        ({"seeds": 3}, "the grid: seeds must be a list of one or more, got 3"),
        ({"seeds": [-1]}, "the grid: seeds must be whole numbers of at least 0, got -1"),
        ({"config": 3}, "the grid: [config] must be a table of settings, got 3"),
        ({"datasets": 3}, "the grid: [datasets] must be a table of settings, got 3"),
        ({"datasets": {"beauty": 3}}, "[datasets.beauty] must be a table of settings, got 3"),
        ({"runs": WORLD}, "runs must be a list of blocks, each headed by [[runs]], got {"),
        ({"runs": 3}, "runs must be a list of blocks, each headed by [[runs]], got 3"),
        ({"runs": [WORLD, 3]}, "block 2 of [[runs]]: a block must be a table of settings, got 3"),
        ({"config": {"epochs": 0}}, "epochs must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_outside_the_blocks_is_said(shared, words):
    refuses({"runs": [WORLD], **shared}, words)


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes('title = "Größe"\n[[runs]]\ndatasets = ["beauty"]\n'.encode("latin-1"))
    refuses(path, str(path), "is not UTF-8", "can't decode byte 0xf6")


def test_what_is_sound_is_let_through():
    settings = {"patience": None, "lr": 1, "dropout": 0, "warmup": 0, "monitor": "MRR"}
    runs = load_grid({"seeds": range(3), "runs": [{**WORLD, **settings}]})
    assert [run.seed for run in runs] == [0, 1, 2] and runs[0].config["lr"] == 1


def test_loading_a_grid_leaves_torch_s_generator_alone():
    before = torch.get_rng_state()
    load_grid({"runs": [{**WORLD, "dim": 12}]})
    assert torch.equal(torch.get_rng_state(), before)
