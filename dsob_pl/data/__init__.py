"""Data: collection, replay, and the data module that joins them."""

from dsob_pl.data.collector import Collector, EpisodeStatistics
from dsob_pl.data.datamodule import ReplayDataModule
from dsob_pl.data.many_seeds import ManySeedsData
from dsob_pl.data.replay import build_replay, transitions
from dsob_pl.data.saved_replay import load_replay, save_replay
from dsob_pl.data.stream import SeedsStep, Step

__all__ = [
    "Collector",
    "EpisodeStatistics",
    "ManySeedsData",
    "ReplayDataModule",
    "SeedsStep",
    "Step",
    "build_replay",
    "load_replay",
    "save_replay",
    "transitions",
]
