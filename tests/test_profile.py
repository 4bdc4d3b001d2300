"""Profiles: each number is what its name says, and the worlds stand where their rules put them."""

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner

import seqrec_lib as sr
from seqrec_lib.__main__ import main
from seqrec_lib.analysis import gini
from seqrec_lib.study import profiles, write_profile
from seqrec_lib.study.provenance import data_sha256


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [0, 0, 0, 8], [1, 2, 3, 10], [0, 5, 5]], ids=str)
def test_gini_is_half_the_mean_gap_over_the_mean(counts):
    gaps = [abs(a - b) for a, b in itertools.product(counts, repeat=2)]
    assert gini(counts) == pytest.approx(np.mean(gaps) / 2 / np.mean(counts))


def test_gini_ends():
    assert gini([3, 3, 3]) == 0
    assert gini([0, 0, 0, 9]) == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="above 0"):
        gini([0, 0])


@pytest.fixture(scope="module")
def worlds():
    sizes = dict(num_users=800, seed=3)
    return {
        name: sr.leave_one_out(getattr(sr.worlds, name)(**sizes))
        for name in ("markov", "taste", "series")
    }


def test_a_profile_is_made_of_training_and_validation(worlds):
    split = worlds["series"]
    found = sr.profile(split)
    assert found["users"] == 800 and found["items"] == 200 and found["mean_length"] == 30
    assert found["interactions"] == split.train.num_interactions == 800 * 30
    assert found["gini"] == gini(split.train.item_counts[1:])
    chain = sr.evaluate(sr.MarkovChain().fit(split), split, part="validation")
    assert found["markov"] == chain.filtered["NDCG@10"]
    for name, decay in {"knn_bag": 1.0, "knn_last": 0.0}.items():
        knn = sr.ItemKNN(decay=decay).fit(split)
        assert found[name] == sr.evaluate(knn, split, part="validation").filtered["NDCG@10"]


def test_the_last_item_alone_is_what_no_decay_reads(worlds):
    """The same neighbours from a history of one item."""
    split = worlds["taste"]
    histories = split.validation.histories
    ends = sr.Ragged(histories.values[histories.offsets[1:] - 1], np.arange(len(histories) + 1))
    knn = sr.ItemKNN(decay=0.0).fit(split)
    np.testing.assert_allclose(knn.score_histories(histories), knn.score_histories(ends))


def test_the_worlds_stand_where_their_rules_put_them(worlds):
    found = {name: sr.profile(split) for name, split in worlds.items()}
    markov = {name: profile["markov"] for name, profile in found.items()}
    assert max(markov, key=markov.get) == "markov"
    assert found["markov"]["bag_gain"] < -0.2 < 0.1 < found["taste"]["bag_gain"]
    assert all(-1 <= profile["bag_gain"] <= 1 for profile in found.values())


def test_the_test_targets_play_no_part(worlds):
    split = worlds["markov"]
    part = split.test
    other = sr.Part(part.users, part.histories, np.roll(part.targets, 1))
    changed = sr.Split(split.train, split.validation, other, split.name)
    assert sr.profile(split) == sr.profile(changed)


# ---- as files --------------------------------------------------------------------------------


@pytest.fixture
def catalogue(monkeypatch):
    """lastfm, read from nowhere."""
    inter = sr.worlds.markov(num_users=60, num_items=20, length=8, seed=0)
    monkeypatch.setattr("seqrec_lib.study.profiling.load_dataset", {"lastfm": inter}.__getitem__)
    return inter


def test_a_profile_is_written_read_and_no_record(catalogue, tmp_path):
    path = write_profile("lastfm", tmp_path)
    written = json.loads(path.read_text())
    assert written["data_sha256"] == data_sha256(catalogue) and written["code_version"]
    row = profiles(tmp_path).loc["lastfm"]
    expected = sr.profile(sr.leave_one_out(catalogue))
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    (path.parent / ".lastfm.json.x7.json").write_text("{")  # left by a killed process
    assert len(profiles(tmp_path)) == 1
    assert sr.results(tmp_path).empty  # and no warning of a damaged record


def test_no_profiles_are_an_empty_table(tmp_path):
    assert profiles(tmp_path).empty


def test_the_command_writes_what_it_names(catalogue, tmp_path):
    here = ["study", "profile", "lastfm", "--results", str(tmp_path)]
    done = CliRunner().invoke(main, here)
    assert done.exit_code == 0, done.output
    assert done.output.strip().endswith("lastfm.json")
    assert (tmp_path / "profiles" / "lastfm.json").is_file()
    assert CliRunner().invoke(main, ["study", "profile", "beuaty"]).exit_code == 2


def test_committed_profiles_are_of_the_data_the_records_were_made_of():
    """Where both are there, their hashes agree."""
    hashes = sr.results()[["dataset", "data_sha256"]].drop_duplicates().set_index("dataset")
    for dataset, row in profiles().iterrows():
        if dataset in hashes.index:
            assert set(hashes.loc[[dataset], "data_sha256"]) == {row["data_sha256"]}, dataset
