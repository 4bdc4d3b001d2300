"""Models on disk: one safetensors file, with the configuration in its header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..device import device as pick_device
from ..files import atomic_path, plain
from .loose import LooseUniformAttention
from .sasrec import SASRec, SequentialModel, seeded
from .stosa import STOSA
from .weighting import WEIGHTINGS, Uniform, Weighting, describe_weighting, make_weighting

__all__ = ["MODELS", "load", "save"]

#: The classes that :func:`load` can make, by name.
MODELS: dict[str, type[SequentialModel]] = {"SASRec": SASRec, "STOSA": STOSA}


def save(model: SequentialModel, path: str | os.PathLike) -> None:
    """Write weights and configuration to ``path``, atomically.

    The file is plain safetensors; its header holds the class and the constructor's arguments as
    JSON. Nothing in it is code.

    Raises:
        TypeError: the model's class is not one that :func:`load` can make.
        ValueError: the model is under an intervention, or its weightings are not those of its
            configuration: what a file holds is made from the latter.
    """
    name = type(model).__name__
    if MODELS.get(name) is not type(model):
        raise TypeError(
            f"cannot save a {name}; load can make {', '.join(MODELS)}. "
            "For a class of your own, keep model.state_dict() with safetensors"
        )
    _check_configured(model)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    header = {"model": name, "config": json.dumps(model.config, default=plain)}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata=header)


def _check_configured(model: SequentialModel) -> None:
    """Raise ValueError where the model is not what :func:`load` would make of its configuration."""
    if model.departures():
        raise ValueError(
            "cannot save a model under an intervention: load would make it without; "
            "save it outside the `with intervene(..)`"
        )
    configured = model.config["attention"]
    loose = configured == LooseUniformAttention.name
    expected = Uniform.name if loose else _settled(configured)
    for layer, block in enumerate(model.blocks):
        found = _settled(block.attention.weighting)
        if found != expected:
            raise ValueError(
                f"cannot save a model whose block {layer} has the weighting {found!r} where its "
                f"configuration says {expected!r}; change weightings by model.set_weighting(..)"
            )


def _settled(spec: str | dict[str, Any] | Weighting) -> str | dict[str, Any]:
    """What a file says of a weighting; of one of the library's, with all its settings."""
    described = describe_weighting(spec)
    if _name(described) in WEIGHTINGS:
        described = describe_weighting(make_weighting(described))
    return json.loads(json.dumps(described, default=plain))


def _name(spec: str | dict[str, Any]) -> str:
    return spec if isinstance(spec, str) else spec["name"]


def load(
    path: str | os.PathLike, device: str | torch.device = "cpu", attention: Weighting | None = None
) -> SequentialModel:
    """The model that :func:`save` wrote, in evaluation mode.

    Args:
        attention: a weighting of your own class, where the model was made with one: a file
            holds its parameters but never its code.

    Raises:
        ValueError: the file is not a saved model, its weighting must be passed, or the one
            passed is another or has other settings.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        dtype = next((x.dtype for x in state.values() if x.is_floating_point()), None)
        kind, config = MODELS[header["model"]], json.loads(header["config"])
        name = _name(config["attention"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a model saved by this library ({error})") from error
    if attention is not None:
        if (passed := _settled(attention)) != (saved := _settled(config["attention"])):
            raise ValueError(f"{path} was made with the weighting {saved!r}, not {passed!r}")
        config["attention"] = attention
    elif name not in (*WEIGHTINGS, LooseUniformAttention.name):
        raise ValueError(
            f"{path} was made with the weighting {name!r}, which is not the "
            "library's; pass an instance of its class: load(path, attention=...)"
        )
    try:
        with seeded(0):  # initial values are drawn, and overwritten
            model = kind(**config).to(dtype)
        model.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a model saved by this library: what it holds does not "
            f"fit a {header['model']} ({error})"
        ) from error
    return model.to(pick_device(device)).eval()
