"""The PyTorch adapter through the parity plan; run by test_parity.py under horovodrun."""

import sys
from pathlib import Path

import torch
from parity_plan import BETAS, EPSILON, MOMENTUM, Case, drive
from torch_problem import parameters, take_step

import slowmo_hvd.torch as hvd


class Training:
    def __init__(self, case: Case) -> None:
        self.params = parameters(torch.float64)
        groups = [{"params": [param]} for param in self.params]
        if case.inner == "SGD":
            inner = torch.optim.SGD(groups, lr=0.1, momentum=MOMENTUM)
        else:
            inner = torch.optim.Adam(groups, lr=0.1, betas=BETAS, eps=EPSILON)
        self.optimizer = hvd.DistributedOptimizer(inner, **case.slowmo)
        self.flush = self.optimizer.flush

    def step(self, lr, gradient_at):
        take_step(self.optimizer, (lr, lr), gradient_at)

    def weights(self):
        return [param.detach().numpy() for param in self.params]


hvd.init()
torch.set_num_threads(1)
drive(Training, hvd.rank(), Path(sys.argv[1]), "torch")
