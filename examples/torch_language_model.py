"""A byte-level transformer with AdamW, on text that is always at hand: Python's own library.

    horovodrun --gloo -np 2 python examples/torch_language_model.py

AdamW's moments are kept through the syncs, as `buffers="maintain"` has it and the paper does.
"""

import argparse
import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slowmo_hvd.torch as hvd

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--batch-size", type=int, default=16, help="sequences a step, of each worker")
parser.add_argument("--context", type=int, default=64, help="bytes in a sequence")
parser.add_argument("--width", type=int, default=96)
parser.add_argument("--layers", type=int, default=3)
parser.add_argument("--lr", type=float, default=3e-3)
parser.add_argument("--sync-period", type=int, default=12, help="τ")
parser.add_argument("--slow-momentum", type=float, default=0.2, help="β")


def load_text() -> tuple[Tensor, Tensor]:
    """The standard library's source as bytes: nine tenths to train on, one to test on."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    text = b"\n".join(file.read_bytes() for file in files)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]


class Transformer(nn.Module):
    """Predicts the next byte from those before it, at every place of a text."""

    def __init__(self, width: int, layers: int, context: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256))

    def forward(self, text: Tensor) -> Tensor:
        """Logits, (batch, length, 256), for a text of (batch, length)."""
        length = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=text.device)
        hidden = self.bytes(text) + self.places.weight[:length]
        return self.out(self.layers(hidden, mask=mask, is_causal=True))


def loss_on(model: nn.Module, data: Tensor, args: argparse.Namespace, device: str) -> Tensor:
    """The loss on a batch of random places in ``data``: every worker draws its own."""
    starts = torch.randint(len(data) - args.context, (args.batch_size,))
    text = torch.stack([data[start : start + args.context + 1] for start in starts]).to(device)
    return F.cross_entropy(model(text[:, :-1]).transpose(1, 2), text[:, 1:])


@torch.no_grad()
def evaluate(model: nn.Module, data: Tensor, args: argparse.Namespace, device: str) -> float:
    """Bits per byte of the test text, over all workers. 8 is to know nothing."""
    losses = torch.stack([loss_on(model, data, args, device) for _ in range(16)])
    return hvd.allreduce(losses.mean(), name="loss").item() / math.log(2)


def main() -> None:
    args = parser.parse_args()
    hvd.init()
    torch.set_num_threads(1)  # the workers share one machine's cores
    torch.manual_seed(hvd.rank())  # other batches on every worker; the weights are broadcast
    device = "cpu"
    if torch.cuda.is_available():
        torch.cuda.set_device(hvd.local_rank())
        device = "cuda"

    train_text, test_text = load_text()
    model = Transformer(args.width, args.layers, args.context).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        sync_period=args.sync_period,
        slow_momentum=args.slow_momentum,
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr, total_steps=args.steps, pct_start=0.1
    )

    for step in range(1, args.steps + 1):
        optimizer.zero_grad()
        loss_on(model, train_text, args, device).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # gradients are this worker's own
        optimizer.step()
        scheduler.step()
        if step % 100 == 0 or step == args.steps:
            optimizer.flush(model)
            bits = evaluate(model, test_text, args, device)
            if hvd.rank() == 0:
                sent = optimizer.sync_stats.bytes / 1e6
                print(f"step {step:4}  test {bits:.3f} bits per byte  {sent:.1f} MB to allreduce")


if __name__ == "__main__":
    main()
