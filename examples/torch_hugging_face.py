"""Hugging Face's Trainer: a small GPT-2 on the text of Python's own library.

    horovodrun --gloo -np 2 python examples/torch_hugging_face.py

Trainer itself knows of one process. What makes it distributed is here: each rank's share of the
data, SlowMo's optimizer, and its FlushCallback. The model is made from a configuration, so nothing
is fetched.
"""

import argparse
import os
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

import slowmo_hvd.torch as hvd
from slowmo_hvd.torch.hugging_face import FlushCallback

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch-size", type=int, default=8, help="texts a step, of each worker")
parser.add_argument("--lr", type=float, default=3e-3)
parser.add_argument("--sync-period", type=int, default=12, help="τ")
parser.add_argument("--folder", default="hugging_face_run", help="for checkpoints")
CONTEXT = 64


class Texts(Dataset):
    """Texts of so many bytes, one after the other."""

    def __init__(self, data: torch.Tensor) -> None:
        self.texts = data[: len(data) // CONTEXT * CONTEXT].view(-1, CONTEXT)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.texts[at], "labels": self.texts[at]}


def load_texts() -> tuple[Texts, Texts]:
    """This rank's share of the training text, and all of the validation text."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    text = b"\n".join(file.read_bytes() for file in files)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    part = len(data) * 9 // 10 // hvd.size()  # equally long: all ranks take as many steps
    mine = data[hvd.rank() * part :][:part]
    return Texts(mine), Texts(data[len(data) * 9 // 10 :][: 256 * CONTEXT])


def main() -> None:
    args = parser.parse_args()
    hvd.init()
    torch.set_num_threads(1)  # the workers share one machine's cores
    torch.manual_seed(0)

    train_set, eval_set = load_texts()
    config = GPT2Config(
        vocab_size=256,
        n_positions=CONTEXT,
        n_embd=96,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLM",
    )
    model = GPT2LMHeadModel(config)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.AdamW(model.parameters(), lr=args.lr),
        named_parameters=model.named_parameters(),
        sync_period=args.sync_period,
    )
    # The same on every rank, since they decide when to flush. Rank 0 alone saves and prints.
    arguments = TrainingArguments(
        args.folder,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=args.steps // 10,
        eval_strategy="steps",
        eval_steps=50,
        save_strategy="steps",
        save_steps=50,
        save_total_limit=1,
        logging_steps=50,
        disable_tqdm=True,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train_set,
        eval_dataset=eval_set,
        optimizers=(optimizer, None),
        callbacks=[FlushCallback()],
    )
    if hvd.rank() != 0:
        trainer.remove_callback(PrinterCallback)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    losses = hvd.allgather_object(loss)
    if hvd.rank() == 0:
        stats = optimizer.sync_stats
        print(f"evaluation loss {losses} on the ranks, {stats.syncs} syncs")


if __name__ == "__main__":
    main()
