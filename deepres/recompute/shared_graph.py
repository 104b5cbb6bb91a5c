"""Find tensors that several units' graphs compute with: a plan would run the backward pass behind them in parts."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torch.autograd.graph import Node

from deepres.recompute.discarding import OTHER_WAYS

_KEY = "deepres"
_ACCUMULATES = "torch::autograd::AccumulateGrad"


def mark_graph(y: Tensor, of_pass: object, graph: int) -> None:
    """Mark the nodes of the graph that computes y.

    A graph that has saved nothing can run backwards again and again, and autograd does not complain.

    Args:
        y: the output of a graph.
        of_pass: the same for all graphs of one forward pass; others' marks are ignored.
        graph: the number of this one.

    Raises:
        RuntimeError: another graph of this pass shares a node, other than one that accumulates into a parameter.
    """
    nodes: list[Node | None] = [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node.name() == _ACCUMULATES:
            continue
        metadata = cast(dict[str, Any], node.metadata)  # stubs call it a method
        marked = metadata.get(_KEY)
        if marked == (of_pass, graph):
            continue
        if marked is not None and marked[0] is of_pass:
            raise RuntimeError(OTHER_WAYS)
        metadata[_KEY] = of_pass, graph
        nodes += [before for before, _ in node.next_functions]
