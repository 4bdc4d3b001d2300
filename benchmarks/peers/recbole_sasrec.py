"""RecBole's SASRec, cross-entropy over all items: a sample for each prefix of a history."""

from __future__ import annotations

import sys
from pathlib import Path

import recbole
import torch
from _clock import Clock, answer, job
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, init_seed


def main() -> None:
    options = job()
    sys.argv = sys.argv[:1]  # RecBole reads the command line, too
    folder = Path(options.folder)
    (folder / "log").mkdir()
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    (folder / "log" / "log.inter").write_text(header + Path(options.log).read_text())
    config = Config(
        "SASRec", "log",
        config_dict={
            "data_path": str(folder), "checkpoint_dir": str(folder), "use_gpu": False,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "n_layers": 2, "n_heads": 1, "hidden_size": options.dim, "inner_size": options.dim,
            "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2, "loss_type": "CE",
            "MAX_ITEM_LIST_LENGTH": options.length, "train_batch_size": options.batch,
            "train_neg_sample_args": None, "show_progress": False, "state": "ERROR",
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user",
                          "mode": "full"},
        },
    )  # fmt: skip
    init_seed(0, True)
    train, _, _ = data_preparation(config, create_dataset(config))
    torch.set_num_threads(options.threads)
    model = get_model("SASRec")(config, train.dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    clock = Clock(options.steps, options.seconds)
    for batch in train:  # what RecBole's Trainer._train_epoch does with a batch
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        if clock.tick():
            break
    answer(clock, len(train), len(train.dataset), recbole.__version__)


if __name__ == "__main__":
    main()
