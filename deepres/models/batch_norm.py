"""Batch normalisation whose first forward pass can be replayed bit for bit.

NOTE [ Replaying batch norm ]
Activations that were discarded are recomputed in the backward pass, and batch norm is the one layer for which
running the forward pass again would not be the same: it would update the running statistics a second time,
count a second batch, and reduce (under synchronisation: communicate) once more. Therefore:
1. The first forward pass of a batch writes the batch's mean and inverse standard deviation into a *memo* that
   its caller keeps: two floats a channel.
2. Every later pass over the same batch is given that memo and only normalises with what it finds there. It
   reduces nothing, communicates nothing, updates nothing.
3. Both passes run the very same kernel on the very same operands, so their results agree in every bit. On CUDA it is
   the second half of `native_batch_norm`, an operator of its own: `batch_norm_elemt`. On a CPU `native_batch_norm`
   normalises with `scale = invstd * weight` whatever `invstd` came from, and with running statistics
   `(mean, variance 0)`, `eps = 1` and `weight = invstd * weight` that product is the same one. (CUDA multiplies by
   `weight` first, then by `invstd`, so there it would not be.)
4. The gradient of both is the training one, through the statistics (`native_batch_norm_backward`).
For the same reason the training pass never goes through cuDNN, whose kernels round differently.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Memo = dict[Any, tuple[Any, ...]]
"""What a unit's batch norms computed in their first pass over a batch: module -> (mean, inverse std); and the state of
their last input and output, see `is_as_computed`."""


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of `x: (N, C, H, W)` (Ioffe and Szegedy 2015), replayable; see the NOTE above.

    Parameters, buffers and results are those of `torch.nn.BatchNorm2d`.

    Attributes:
        takes_memo: whether `forward` takes a memo as its second argument.
        process_group: the processes whose batches are normalised together in training (synchronised batch
            norm, on any device); None normalises each process's batch alone. Set by `synchronize_batch_norm`.
    """

    takes_memo = True

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.process_group: dist.ProcessGroup | None = None

    def forward(self, x: Tensor, memo: Memo | None = None) -> Tensor:
        """Normalise `x`; in training, write the batch's statistics to `memo` or, if it holds them, use them.

        Raises:
            ValueError: in training, if there is only one value a channel, which has no variance.
            TypeError: there is a memo, and parameters are of 16 bits, whose batch statistics would be rounded.
        """
        if not self.training:
            return super().forward(x)
        y = self._normalised(_dense(x), memo)
        if memo is not None:
            memo[self, "last"] = (_state(x), _state(y))
        return y

    def _normalised(self, x: Tensor, memo: Memo | None) -> Tensor:
        if memo is not None and self in memo:
            mean, invstd = memo[self]
            y: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
                x, self.weight, self.bias, mean, invstd, self.eps, self.process_group
            )
            return y
        if x.numel() == x.size(1) and self.process_group is None:
            raise ValueError(
                f"batch norm needs more than one value a channel in training, got {tuple(x.shape)}"
            )
        momentum = self._count_batch()
        if self.process_group is not None:
            mean, invstd = self._global_statistics(x, self.process_group, momentum)
            y = _Normalise.apply(x, self.weight, self.bias, mean, invstd, self.eps, self.process_group)  # type: ignore[no-untyped-call]
        else:
            y, mean, invstd = torch.native_batch_norm(
                x, self.weight, self.bias, self.running_mean, self.running_var, True, momentum, self.eps
            )
        if memo is not None:
            if self.weight.itemsize < torch.float32.itemsize:
                raise TypeError(
                    f"batch norm with {self.weight.dtype} parameters cannot be replayed exactly: keep them in float32 "
                    "(autocast computes in 16 bit all the same), or train without a plan"
                )
            memo[self] = (mean, invstd)
        return y

    def _count_batch(self) -> float:
        """Count a batch; return the weight that it has in the running statistics, 0 if there are none."""
        if self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    @torch.no_grad()
    def _global_statistics(
        self, x: Tensor, group: dist.ProcessGroup, momentum: float
    ) -> tuple[Tensor, Tensor]:
        """Mean and inverse std over all processes' batches, (C,) each; updates the running statistics."""
        # Called only for its statistics: unlike var_mean, it needs no fp32 copy of 16-bit values. Its output is freed
        # at once, before the result of the same size is made. The bits that a variance far below eps loses here do not
        # matter once eps is added again.
        _, mean, invstd = torch.native_batch_norm(
            x.detach(), self.weight, self.bias, None, None, True, 0.0, self.eps
        )
        variance = (invstd.pow(-2) - self.eps).clamp_(min=0)
        count = mean.new_full((1,), float(x.numel() // x.size(1)))
        own = torch.cat([mean, variance, count])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own, group=group)
        means, variances, counts = torch.split(torch.stack(parts), [mean.numel(), mean.numel(), 1], dim=1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        variance = ((variances + (means - mean) ** 2) * counts).sum(0) / total
        # None in a replay without a memo, which hides them.
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (total / (total - 1)), momentum)
        return mean, torch.rsqrt(variance + self.eps)


def synchronize_batch_norm(model: nn.Module, process_group: dist.ProcessGroup | None) -> None:
    """Make every `BatchNorm2d` of `model` normalise over all processes of the group (None: each over its own batch)."""
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.process_group = process_group


def run_norm(norm: nn.Module, x: Tensor, memo: Memo | None) -> Tensor:
    """Apply a unit's norm to `x`, with the memo if it takes one; a norm that a user has put there may not.

    Raises:
        RuntimeError: the norm was not given the memo.
    """
    if memo is None or not getattr(norm, "takes_memo", False):
        return norm(x)  # type: ignore[no-any-return]
    y: Tensor = norm(x, memo)
    if isinstance(norm, BatchNorm2d) and norm.training and norm not in memo:
        raise RuntimeError(
            "a forward pre-hook gives a batch norm new arguments without its memo, so it cannot be replayed: let the "
            "hook return all arguments, or train without a plan"
        )
    return y


def is_as_computed(norm: nn.Module, x: Tensor, y: Tensor, memo: Memo) -> bool:
    """Whether `norm` made `y` from `x` in its last pass, so that `normalise` makes `y` again.

    Not so if a hook or subclass changed one of them, or in evaluation mode, which leaves nothing in the memo.
    """
    return memo.get((norm, "last")) == (_state(x), _state(y))


def _state(x: Tensor) -> tuple[object, ...]:
    """Differs if the values may; the same for a view of all values, such as ZeRO's hooks make."""
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape, x._version


def normalise(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    """`(x - mean) * invstd * weight + bias` by channel, with the kernel (and so the bits) of the training pass."""
    y: Tensor
    x = _dense(x)  # as in the training pass
    if x.is_cuda:
        y = torch.batch_norm_elemt(x, weight, bias, mean, invstd, 0.0)
    else:
        scale, zero = invstd * weight, torch.zeros_like(mean)
        y = torch.native_batch_norm(x, scale, bias, mean, zero, False, 0.0, 1.0)[0]
    return y


def _dense(x: Tensor) -> Tensor:
    """`x` without gaps in memory; for views with gaps, PyTorch has kernels that multiply in another order."""
    is_dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x if is_dense else x.contiguous()


class _Normalise(torch.autograd.Function):
    """Batch norm with given batch statistics, whose gradient goes through these statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        invstd: Tensor,
        eps: float,
        process_group: dist.ProcessGroup | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.eps = eps
        ctx.process_group = process_group
        return normalise(x, weight, bias, mean, invstd)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        if ctx.process_group is None:
            gradients = torch.ops.aten.native_batch_norm_backward(
                grads[0], x, weight, None, None, mean, invstd, True, ctx.eps, wanted
            )
            return (*gradients, None, None, None, None)
        return (
            *_synchronised_backward(grads[0], x, weight, mean, invstd, ctx.process_group, wanted),
            *[None] * 4,
        )


def _synchronised_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    invstd: Tensor,
    process_group: dist.ProcessGroup,
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias; the sums that x's gradient needs run over all processes' batches."""
    # Uses the statistics given; the sums for x's gradient, which is not requested, would be local.
    _, sum_dy_normalised, sum_dy = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, None, None, mean, invstd, True, 0.0, [False, True, True]
    )
    dx = None
    if wanted[0]:
        count = sum_dy.new_full((1,), float(x.numel() // x.size(1)))
        sums = torch.cat([sum_dy, sum_dy_normalised, count])
        dist.all_reduce(sums, group=process_group)
        mean_dy, mean_dy_normalised = (sums[:-1] / sums[-1]).chunk(2)
        # dx = scale · (dy − mean_dy − (x − mean) · invstd · mean_dy_normalised), in one tensor
        scale = weight * invstd
        slope, offset = (scale * each for each in (invstd * mean_dy_normalised, mean_dy))
        dx = x - _by_channel(mean)
        dx.mul_(_by_channel(-slope)).addcmul_(grad, _by_channel(scale)).sub_(_by_channel(offset))
        dx = dx.to(x.dtype)
    return dx, sum_dy_normalised if wanted[1] else None, sum_dy if wanted[2] else None


def _by_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
