"""A model large enough for a measurement: over 20M parameters in over 150 tensors."""

import torch
from torch import nn


def large_model(layers: int = 80) -> nn.Module:
    """Linear layers of 512 × 512 and their biases: with 80, 21.0M parameters in 160 tensors."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(512, 512) for _ in range(layers)])


def fill_gradients(model: nn.Module) -> None:
    """Give every parameter a gradient, without the cost of a backward pass."""
    for param in model.parameters():
        param.grad = torch.randn_like(param) * 1e-3
