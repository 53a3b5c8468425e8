"""edge_pair: the reverse of every edge, and no pair that is none."""

import importlib

import pytest
import torch

from fastmlip import ops

reference = importlib.import_module("fastmlip.ops.edge_pair").reference


def crystal(nodes=6, neighbours=9, seed=0):
    """A full neighbour list of made-up vectors, in random order, with self-images."""
    random = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, nodes, (2, nodes * neighbours), generator=random)
    vec = torch.randn(ends.shape[1], 3, generator=random, dtype=torch.float64)
    index, vec = torch.cat([ends, ends.flip(0)], 1), torch.cat([vec, -vec])
    order = torch.randperm(index.shape[1], generator=random)
    index, vec = index[:, order], vec[order]
    return index, vec, vec.square().sum(1, keepdim=True)


def pairs(index, vec, embedding, nodes):
    order = ops.edge_order(index[0], index[1], nodes)
    found = ops.edge_pair(vec, embedding, order, nodes)
    assert torch.equal(found, reference(vec, embedding, order, nodes))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_full_list_has_each_pair_once(dtype):
    index, vec, embedding = crystal()
    vec, embedding = vec.to(dtype), embedding.to(dtype)
    pair = pairs(index, vec, embedding, 6)
    number = torch.arange(len(pair))
    assert (pair <= number).all() and torch.equal(pair[pair], pair)
    assert torch.equal(torch.bincount(pair, minlength=len(pair))[pair.unique()],
                       torch.full((len(pair) // 2,), 2))  # fmt: skip
    other = pair != number
    assert torch.equal(vec[other], -vec[pair[other]])
    assert torch.equal(index[0, other], index[1, pair[other]])
    assert torch.equal(index[1, other], index[0, pair[other]])


def test_the_order_of_nodes_does_not_matter():
    index, vec, embedding = crystal(nodes=40)
    positions = torch.rand(40, 3, generator=torch.Generator().manual_seed(1)).double()
    order = ops.edge_order(index[0], index[1], 40, positions)
    pair = ops.edge_pair(vec, embedding, order, 40)
    assert torch.equal(pair, pairs(index, vec, embedding, 40))


def test_equal_distances_are_not_enough():
    """Two images of one neighbour at one distance have different gradients."""
    index = torch.tensor([[0, 1], [1, 0]])
    vec = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert pairs(index, vec, torch.ones(2, 1), 2).tolist() == [0, 1]


def test_embeddings_must_agree():
    """As they do not, where the cutoff of AB is not that of BA."""
    index = torch.tensor([[0, 1], [1, 0]])
    vec = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    assert pairs(index, vec, torch.tensor([[1.0], [2.0]]), 2).tolist() == [0, 1]
    assert pairs(index, vec, torch.ones(2, 1), 2).tolist() == [0, 0]


def test_one_sided_lists_and_doubled_edges_fall_back_to_edges():
    index, vec, embedding = crystal()
    half = index[0] < index[1]
    alone = pairs(index[:, half], vec[half], embedding[half], 6)
    assert torch.equal(alone, torch.arange(len(alone)))
    doubled = [torch.cat([t, t], -1 if t is index else 0) for t in (index, vec, embedding)]
    pair = pairs(*doubled, 6)
    assert torch.bincount(pair).max() <= 2


def test_no_edges_and_zero_vectors():
    empty = torch.empty(0, 3)
    assert pairs(torch.empty(2, 0, dtype=torch.int64), empty, empty, 4).shape == (0,)
    zero = torch.zeros(1, 3)
    assert pairs(torch.zeros(2, 1, dtype=torch.int64), zero, zero, 1).tolist() == [0]


@pytest.mark.parametrize(
    ("vec", "embedding", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4, 1), r"edge_vec: expected shape \[E, 3\]"),
        (torch.zeros(4, 3), torch.zeros(3, 1), r"edge_embedding: expected shape \[E, B\]"),
    ],
)
def test_bad_arguments(vec, embedding, message):
    index = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        ops.edge_pair(vec, embedding, ops.edge_order(index, index, 1), 1)
