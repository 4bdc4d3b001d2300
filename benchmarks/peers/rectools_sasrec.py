"""RecTools' SASRec, softmax over all items."""

from __future__ import annotations

from importlib.metadata import version

import pandas as pd
from _clock import Clock, answer, job
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class Watch(Callback):
    """Times each step, stops when there are enough, and tells (RecTools works on a copy of it)."""

    def __init__(self, options, targets: int):
        self.options, self.targets, self.clock = options, targets, None

    def on_train_start(self, trainer, module):
        self.clock = Clock(self.options.steps, self.options.seconds)

    def on_train_batch_end(self, trainer, module, *_):
        trainer.should_stop = self.clock.tick()

    def on_train_end(self, trainer, module):
        answer(self.clock, len(trainer.train_dataloader), self.targets, version("rectools"))


def main() -> None:
    options = job()
    log = pd.read_csv(options.log, sep="\t", names=["user_id", "item_id", "datetime"])
    log = log[log.groupby("user_id").cumcount(ascending=False) >= 2]  # leave one out, twice
    lengths = log.groupby("user_id").size() - 1
    watch = Watch(options, int(lengths.clip(upper=options.length).sum()))
    log = log.assign(weight=1.0, datetime=pd.to_datetime(log["datetime"], unit="s"))

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=-1, min_epochs=0, callbacks=[watch], logger=False, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=options.folder,
        )  # fmt: skip

    model = SASRecModel(
        n_blocks=2, n_heads=1, n_factors=options.dim, session_max_len=options.length,
        loss="softmax", dropout_rate=0.2, batch_size=options.batch, get_trainer_func=trainer,
    )  # fmt: skip
    model.fit(Dataset.construct(log))


if __name__ == "__main__":
    main()
