"""Sparse gradients stay local: only the weights' displacements are averaged."""

import pytest
import torch
from models import Bag, train
from ranks import by_rank, equal_on_all_ranks, everyone
from torch import nn

import slowmo_hvd.torch as hvd


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("inner", ["SGD", "SparseAdam"])
def test_embeddings_train_with_optimizers_that_take_sparse_gradients(inner: str) -> None:
    model = Bag()
    made = getattr(torch.optim, inner)(list(model.parameters()), lr=0.1)
    optimizer = hvd.DistributedOptimizer(made, sync_period=2)
    train(model, optimizer, range(4))
    assert model.words.weight.grad is not None
    assert model.words.weight.grad.is_sparse
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(2)
def test_a_word_that_one_rank_alone_saw_moves_by_its_share() -> None:
    words = nn.Embedding(3, 2, _weight=torch.zeros(3, 2), sparse=True)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(words.parameters(), lr=1.0), sync_period=1, slow_momentum=0
    )
    words(torch.tensor([by_rank(0, 1)])).sum().backward()
    optimizer.step()
    assert words.weight.tolist() == [[-0.5, -0.5], [-0.5, -0.5], [0, 0]]


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("closure", [False, True])
def test_sparse_as_dense_lets_adam_train_an_embedding(closure: bool) -> None:
    model = Bag()
    with pytest.raises(RuntimeError, match="sparse"):
        train(model, torch.optim.Adam(model.parameters(), lr=0.1), [0])
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.1), sync_period=2, sparse_as_dense=True
    )
    train(model, optimizer, range(4), closure=closure)
    assert equal_on_all_ranks(model)


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("inner", ["SGD", "SparseAdam"])  # this one refuses dense gradients
def test_dense_and_sparse_gradients_train_alike(inner: str) -> None:
    """Horovod's own reason for sparse_as_dense: it changes how, and not what."""
    trained = []
    for dense in (False, True):
        model = Bag()
        made = getattr(torch.optim, inner)(list(model.parameters()), lr=0.1)
        optimizer = hvd.DistributedOptimizer(made, sync_period=2, sparse_as_dense=dense)
        train(model, optimizer, range(4))
        trained.append(model.words.weight.detach())
    torch.testing.assert_close(trained[0], trained[1])
    assert len(everyone(None)) == hvd.size()
