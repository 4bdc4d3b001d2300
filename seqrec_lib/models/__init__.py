"""Models, and the ways of making their attention weights."""

from .attention import Attention, Block, allowed_pairs
from .baselines import ItemKNN, MarkovChain, Popularity
from .sasrec import SASRec, SequentialModel
from .saving import load, save
from .stosa import STOSA
from .weighting import WEIGHTINGS, Weighting, make_weighting, masked_softmax

__all__ = [
    "STOSA",
    "WEIGHTINGS",
    "Attention",
    "Block",
    "ItemKNN",
    "MarkovChain",
    "Popularity",
    "SASRec",
    "SequentialModel",
    "Weighting",
    "allowed_pairs",
    "load",
    "make_weighting",
    "masked_softmax",
    "save",
]
