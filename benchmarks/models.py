"""Models for measurements: 21M parameters in 160 tensors, or 2M in 10,000."""

import torch
from torch import nn


def large_model(layers: int = 80) -> nn.Module:
    """Linear layers of 512 × 512 and their biases: with 80, 21.0M parameters in 160 tensors."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(512, 512) for _ in range(layers)])


def tiny_parameters() -> nn.Module:
    """10,000 parameters of 200 elements: 2M in all."""
    torch.manual_seed(0)
    module = nn.Module()
    module.all = nn.ParameterList([nn.Parameter(torch.randn(200)) for _ in range(10_000)])
    return module


#: By the name that a benchmark is given.
MODELS = {"large": large_model, "tiny": tiny_parameters}


def fill_gradients(model: nn.Module) -> None:
    """Give every parameter a gradient, without the cost of a backward pass."""
    for param in model.parameters():
        param.grad = torch.randn_like(param) * 1e-3
