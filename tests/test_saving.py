"""Models on disk: what comes back, and what is refused."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import seqrec_lib as sr
from seqrec_lib.models import saving


def make(**options) -> sr.SASRec:
    return sr.SASRec(20, **{"max_len": 6, "dim": 8, "seed": 0, **options})


def same(a: sr.SASRec, b: sr.SASRec) -> bool:
    items = torch.randint(1, 21, (3, 6), generator=torch.Generator().manual_seed(0))
    return torch.equal(a.eval()(items), b.eval()(items))


class Nearest(sr.Weighting):
    """A weighting of the reader's own, with a parameter."""

    name = "nearest"

    def build(self, layer, num_heads, max_len):
        self.sharpness = torch.nn.Parameter(torch.tensor(2.0))
        return self

    def forward(self, scores, allowed):
        return sr.models.masked_softmax(scores * self.sharpness, allowed)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "original", "num_heads": 2, "num_blocks": 3, "dropout": 0.4},
        {"norm": "pre", "attention": "uniform"},
        {"attention": "positional"},
        {"attention": "recency"},
        {"attention": "awrsr-additive"},
        {"attention": {"name": "shuffled", "seed": 3}},
    ],
    ids=str,
)
def test_what_is_saved_comes_back(tmp_path, options):
    model = make(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    sr.save(model, tmp_path / "model.safetensors")
    again = sr.load(tmp_path / "model.safetensors")
    assert same(model, again) and not again.training
    assert again.config == model.config
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_a_weighting_swapped_in_later_is_saved(tmp_path):
    model = make()
    model.set_weighting("uniform")
    sr.save(model, tmp_path / "m")
    assert same(model, sr.load(tmp_path / "m"))
    assert not same(make(), sr.load(tmp_path / "m"))


def test_a_weighting_of_ones_own_is_passed_back_in(tmp_path):
    model = make(attention=Nearest())
    with torch.no_grad():
        model.blocks[0].attention.weighting.sharpness += 1
    sr.save(model, tmp_path / "m")
    with pytest.raises(ValueError, match=r"weighting 'nearest'.*load\(path, attention=...\)"):
        sr.load(tmp_path / "m")
    again = sr.load(tmp_path / "m", attention=Nearest())
    assert same(model, again)
    assert again.blocks[0].attention.weighting.sharpness.item() == 3.0


def test_another_weighting_than_the_saved_one_is_refused(tmp_path):
    sr.save(make(attention=Nearest()), tmp_path / "nearest")
    with pytest.raises(ValueError, match="made with the weighting 'nearest', not 'uniform'"):
        sr.load(tmp_path / "nearest", attention="uniform")
    sr.save(make(attention={"name": "shuffled", "seed": 3}), tmp_path / "shuffled")
    shuffled = sr.WEIGHTINGS["shuffled"]
    with pytest.raises(ValueError, match="'seed': 3.* not .*'seed': 4"):
        sr.load(tmp_path / "shuffled", attention=shuffled(seed=4))
    assert sr.load(tmp_path / "shuffled", attention=shuffled(seed=3)).config["attention"]


def test_a_class_made_of_the_librarys_is_not_taken_for_it(tmp_path):
    class Doubled(sr.WEIGHTINGS["softmax"]):
        def forward(self, scores, allowed):
            return super().forward(2 * scores, allowed)

    class Nameless(sr.Weighting):
        def forward(self, scores, allowed):
            return sr.models.masked_softmax(scores, allowed)

    for kind in (Doubled, Nameless):
        model = make(attention=kind())
        assert model.config["attention"] == kind.__name__
        sr.save(model, tmp_path / "m")
        with pytest.raises(ValueError, match=f"the weighting '{kind.__name__}', which is not the"):
            sr.load(tmp_path / "m")
        assert same(model, sr.load(tmp_path / "m", attention=kind()))


def test_a_model_keeps_its_settings_to_itself():
    spec = {"name": "shuffled", "seed": 3}
    model = make(attention=spec)
    spec["seed"] = 9
    assert model.config["attention"]["seed"] == 3


def test_a_class_that_cannot_be_loaded_is_not_saved(tmp_path):
    class Mine(sr.SASRec):
        pass

    with pytest.raises(TypeError, match="cannot save a Mine; load can make SASRec"):
        sr.save(Mine(20), tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["uniform", "positional"])
def test_a_model_under_an_intervention_is_not_saved(tmp_path, change):
    model = make()
    if change == "positional":  # it has parameters, so it is passed as an object
        change = make(attention=change).blocks[0].attention.weighting
    with sr.intervene(model, change), pytest.raises(ValueError, match="outside the `with"):
        sr.save(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
    sr.save(model, tmp_path / "model.safetensors")
    assert same(sr.load(tmp_path / "model.safetensors"), model)


@pytest.mark.parametrize("change", [sr.ScaleResidual(0.5), sr.SwapPositions(-1, -2)], ids=str)
def test_nor_is_one_whose_intervention_is_no_weighting(tmp_path, change):
    model = make()
    with sr.intervene(model, change), pytest.raises(ValueError, match="outside the `with"):
        sr.save(model, tmp_path / "m")
    sr.save(model, tmp_path / "m")
    assert same(sr.load(tmp_path / "m"), model)


def test_a_weighting_that_the_configuration_does_not_know_is_not_saved(tmp_path):
    for attention, there, said in (
        ("softmax", "uniform", "block 1 has the weighting 'uniform' where .* says 'softmax'"),
        ({"name": "shuffled"}, sr.WEIGHTINGS["shuffled"](seed=3), "'seed': 3.* says .*'seed': 0}"),
        ("uniform-loose", "last", "'last' where .* says 'uniform'"),
        (Nearest(), "softmax", "'softmax' where .* says 'nearest'"),
    ):
        model = make(attention=attention)
        model.blocks[1].attention.weighting = sr.make_weighting(there).build(1, 1, 6)
        with pytest.raises(ValueError, match=f"{said}; change weightings by model.set_weighting"):
            sr.save(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_the_loose_form_is_neither_left_nor_come_to(tmp_path):
    for made, wanted in (("uniform-loose", "softmax"), ("softmax", "uniform-loose")):
        model = make(attention=made)
        with pytest.raises(ValueError, match=f"a new model with attention='{wanted}'"):
            model.set_weighting(wanted)
        sr.save(model, tmp_path / "m")
        assert same(sr.load(tmp_path / "m"), model)


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path, old = tmp_path / "m", make(seed=1)
    sr.save(old, path)

    def half(state, file, **options):
        Path(file).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        sr.save(make(seed=2), path)
    assert same(old, sr.load(path)) and list(tmp_path.iterdir()) == [path]


# --- files that are something else -------------------------------------------------------------


def header(model="SASRec", config=None, **changes):
    config = make().config if config is None else config
    return {"model": model, "config": json.dumps({**config, **changes})}


def weights():
    return {name: tensor.contiguous() for name, tensor in make().state_dict().items()}


FOREIGN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404 Not Found</html>"),
    "no header": lambda path: save_file(weights(), path),
    "another class": lambda path: save_file(weights(), path, metadata=header("Transformer")),
    "no configuration": lambda path: save_file(weights(), path, metadata={"model": "SASRec"}),
    "not JSON": lambda path: save_file(weights(), path, metadata=header() | {"config": "{"}),
    "no arguments": lambda path: save_file(weights(), path, metadata=header() | {"config": "{}"}),
    "a list": lambda path: save_file(weights(), path, metadata=header() | {"config": "[]"}),
    "unknown argument": lambda path: save_file(weights(), path, metadata=header(rotary=True)),
    "other shapes": lambda path: save_file(weights(), path, metadata=header(dim=16)),
    "a tensor missing": lambda path: save_file(
        {k: v for k, v in weights().items() if k != "positions"}, path, metadata=header()
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "some.file"
    FOREIGN[kind](path)
    with pytest.raises(ValueError, match=r"some\.file is not a model saved by this library"):
        sr.load(path)


def test_a_truncated_file_is_refused(tmp_path):
    sr.save(make(), tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "m").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is not a model saved by this library"):
            sr.load(tmp_path / "m")


def test_a_pickle_is_refused_and_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (tmp_path / "m").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is not a model"):
        sr.load(tmp_path / "m")
    torch.save({"model": Bomb()}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match="is not a model"):
        sr.load(tmp_path / "m.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        sr.load(tmp_path / "absent")


def test_precision_and_generator_survive(tmp_path):
    sr.save(make(num_blocks=1).double(), tmp_path / "model.safetensors")
    before = torch.get_rng_state()
    again = sr.load(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float64}


def test_numpy_s_sizes_are_saved_like_others(tmp_path):
    model = sr.SASRec(np.int64(20), max_len=np.int32(6), dim=8, seed=0)
    sr.save(model, tmp_path / "model.safetensors")
    assert same(model, sr.load(tmp_path / "model.safetensors"))
