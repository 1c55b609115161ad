"""sentence-transformers' trainer over given triplets in their order. Does not know hone."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import TrainerCallback

from benchmarks.pacing import Pace


class Paced(TrainerCallback):
    """Pauses where it is told to."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """All is ready."""
        self._pace.ready()

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """One step is done."""
        if "loss" in kwargs["logs"]:
            self._pace.stepped(kwargs["logs"]["loss"])


class InOrder(SentenceTransformerTrainer):
    """Takes the triplets as they come."""

    def get_batch_sampler(self, dataset: Any, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        """Return batches without shuffling."""
        return BatchSampler(SequentialSampler(dataset), batch_size, drop_last=True)


def train(pace: Pace, scratch: str) -> None:
    """Train as told by "load"."""
    told = pace.settings()
    attention = {} if told["attention"] is None else {"attn_implementation": told["attention"]}
    model = SentenceTransformer(told["model"], device=told["device"], model_kwargs=attention)
    model.max_seq_length = told["max_length"]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = told["dropout"]
    columns = zip(*json.loads(Path(told["triplets"]).read_text()), strict=True)
    triplets = Dataset.from_dict(dict(zip(("anchor", "positive", "negative"), map(list, columns), strict=True)))
    loss = (
        CachedMultipleNegativesRankingLoss(model, scale=1 / told["temperature"], mini_batch_size=told["mini_batch"])
        if told["cached"]
        else MultipleNegativesRankingLoss(model, scale=1 / told["temperature"])
    )
    steps, warmup = told["steps"], told["warmup"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=told["learning_rate"], weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / warmup if step < warmup else (steps - step) / max(1, steps - warmup)
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=scratch,
        max_steps=steps,
        per_device_train_batch_size=told["batch_size"],
        bf16=told["precision"] == "bf16",
        use_cpu=told["device"] == "cpu",
        max_grad_norm=1.0,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = InOrder(model, arguments, triplets, loss=loss, optimizers=(optimizer, schedule), callbacks=[Paced(pace)])
    trainer.train()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        train(Pace(["sentence-transformers", "transformers", "torch"], torch.cuda.max_memory_allocated), folder)
