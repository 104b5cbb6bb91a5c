"""The base of all engines: an optimizer step over micro batches, evaluation, and the net's state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepres.autocast import ComputeIn
from deepres.batch_sizes import BatchSizes
from deepres.config import Config
from deepres.data import Batch
from deepres.distributed import Process, average_over_processes, sum_over_processes
from deepres.gradients import backward_in_this_thread
from deepres.metrics import metric_sums, summed_loss
from deepres.models import synchronize_batch_norm


class NonFiniteError(ArithmeticError):
    """A step's loss or gradient was not finite in at least one process; no process has taken the step.

    Attributes:
        what: `loss` or `gradient`.
    """

    def __init__(self, what: Literal["loss", "gradient"]) -> None:
        super().__init__(f"the {what} is not finite")
        self.what: Literal["loss", "gradient"] = what


MAX_SKIPPED_STEPS = 20
"""Consecutive steps that fp16's loss scaler may skip, halving the scale each time."""

MOMENTUM = "momentum_buffer"
"""The momentum's key in the state of `torch.optim.SGD`."""


class Engine:
    """One way to run the training steps of a net across processes.

    The loss of a step is the cross entropy summed over the images of the global batch and divided by its nominal size,
    however it is divided into processes and micro batches; images with the ignored label add nothing.

    Args:
        net: the net, on any device, with the same parameters in every process.
        config: the run's configuration.
        process: this process.
        sizes: how the global batch is divided.

    Attributes:
        num_skipped: consecutive steps, up to the last one, that fp16's loss scaler has skipped.
    """

    def __init__(self, net: nn.Module, config: Config, process: Process, sizes: BatchSizes) -> None:
        self.net = net
        self.config = config
        self.process = process
        self.sizes = sizes
        if config.engine.sync_batch_norm and process.world_size > 1:
            synchronize_batch_norm(net, dist.group.WORLD)
        self.module: nn.Module = ComputeIn(net, config.precision.dtype, process.device.type)
        self.has_averaged_buffers = False
        self._has_momentum = False
        self.num_skipped = 0
        self._optimizer: Any = None
        self._scaler: torch.amp.GradScaler | None = None

    def step(
        self,
        micro_batches: Iterable[Batch],
        learning_rate: float,
        flags: Callable[[], Sequence[bool]] = tuple,
    ) -> tuple[Tensor, list[bool]]:
        """Run one optimizer step over `accumulation` micro batches.

        Args:
            micro_batches: this process's.
            learning_rate: of this step.
            flags: called after the passes; gives flags that the processes exchange along with the loss.

        Returns:
            This process's `metric_sums` over its micro batches, (4,) float64, and for each flag whether at least one
            process has set it.

        Raises:
            NonFiniteError: in all processes and before any parameter has changed; for gradients in fp16, after
                `MAX_SKIPPED_STEPS` skipped steps in a row.
        """
        self._set_learning_rate(learning_rate)
        sums = self.run_passes(micro_batches)
        found, own = [sums[0], self._has_bad_gradient()], list(flags())
        if self.process.world_size > 1:
            # Filled on the device: a copy from the CPU would wait for the passes.
            found += [sums.new_full((), float(flag)) for flag in own]
        told = sum_over_processes(torch.stack(found))
        is_launched = self._update_unless_bad(told[0], told[1])
        loss, is_bad, *of_all = told.tolist()  # the step's only synchronization with the device
        if not math.isfinite(loss) or is_bad:
            raise NonFiniteError("gradient" if math.isfinite(loss) else "loss")
        is_updated = is_launched or self._update()
        self.num_skipped = 0 if is_updated else self.num_skipped + 1
        self._has_momentum |= is_updated
        if self.num_skipped and (self.loss_scaler is None or self.num_skipped > MAX_SKIPPED_STEPS):
            raise NonFiniteError("gradient")
        return sums, [flag > 0 for flag in of_all or own]

    def run_passes(self, micro_batches: Iterable[Batch]) -> Tensor:
        """Run a step's forward and backward passes, without its update; returns its sums, as `step` does.

        `micro_batches` is iterated to its end before anything waits for the device.
        """
        self.has_averaged_buffers = False
        if not self.net.training:  # visiting thousands of modules takes milliseconds
            self.net.train()
        sums = torch.zeros(4, dtype=torch.float64, device=self.process.device)
        for k, batch in enumerate(micro_batches):
            is_last = k == self.sizes.accumulation - 1
            with self._accumulating(is_last=is_last):
                # Added at once: the next replay of a recorded pass overwrites its sums.
                sums += self._pass(batch.images, batch.labels, is_last=is_last)
        return sums

    @property
    def shards_parameters(self) -> bool:
        """Whether parameters are sharded, so that a pass gathers them from the other processes."""
        return self.config.engine.zero_stage == 3 and self.process.world_size > 1

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) in evaluation mode; collective where parameters are sharded."""
        if self.net.training:  # as in `run_passes`
            self.net.eval()
        return self._run(images)

    def average_buffers(self) -> None:
        """Average the running statistics over the processes, each of which estimates them from its own batches."""
        if not self.has_averaged_buffers:  # averaging again could change the rounding
            average_over_processes(self.net.buffers())
        self.has_averaged_buffers = True

    def averaged_buffers(self) -> dict[str, Tensor]:
        """CPU copies of the buffers as `average_buffers` would leave them, which changes none; collective."""
        averaged = {name: buffer.detach().clone() for name, buffer in self.net.named_buffers()}
        if not self.has_averaged_buffers:
            average_over_processes(averaged.values())
        return {name: on_cpu(buffer) for name, buffer in averaged.items()}

    def whole_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The net's parameters by name, each unsharded and on the CPU; collective."""
        for name, parameter in self.net.named_parameters():
            yield name, on_cpu(parameter)

    def momentum(self) -> Iterator[tuple[str, Tensor]]:
        """The optimizer's momentum by parameter name, each unsharded and on the CPU; collective.

        Empty before the first step.
        """
        if self._has_momentum and self.config.optim.momentum:
            for name, parameter in self.net.named_parameters():
                if parameter.requires_grad:
                    yield name, on_cpu(self._whole_momentum(parameter))

    def load_momentum(self, read: Callable[[str], Tensor]) -> None:
        """Load what `momentum` yielded, with whatever engine and number of processes.

        Args:
            read: returns the momentum, unsharded and on the CPU, of the parameter with that name.
        """
        self._make_momentum()
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad:
                self._set_momentum(parameter, read(name))
        self._has_momentum = True

    @property
    def loss_scaler(self) -> torch.amp.GradScaler | None:
        """fp16's loss scaler, if it is enabled; fairscale's is not on a CPU."""
        return self._scaler if self._scaler is not None and self._scaler.is_enabled() else None

    def state(self) -> dict[str, Tensor]:
        """The net's parameters and buffers by name, unsharded and on the CPU; collective."""
        buffers = {name: on_cpu(buffer) for name, buffer in self.net.named_buffers()}
        return dict(self.whole_parameters()) | buffers

    def _run(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images.contiguous(memory_format=self.config.precision.memory_format))
        return logits

    def run_eagerly(self) -> None:
        """Run passes eagerly from now on, so that hooks are called; recorded passes are discarded."""
        return

    def _pass(self, images: Tensor, labels: Tensor, *, is_last: bool) -> Tensor:
        """Run the forward and backward pass of a micro batch; returns its `metric_sums`."""
        logits = self._run(images)
        loss = summed_loss(logits, labels)
        sums = metric_sums(logits, labels, loss)
        # Engines average gradients over processes: multiplying by their number makes that a sum.
        with backward_in_this_thread():
            self._backward(loss * (self.sizes.world_size / self.sizes.global_size), is_last=is_last)
        return sums

    def _accumulating(self, *, is_last: bool) -> AbstractContextManager[Any]:  # noqa: ARG002
        """The context of a micro batch's passes; only the last one's must reduce gradients over the processes."""
        return nullcontext()

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

    def _backward(self, loss: Tensor, *, is_last: bool) -> None:  # noqa: ARG002
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def _update_unless_bad(self, loss: Tensor, num_bad: Tensor) -> bool:  # noqa: ARG002
        """Launch the update if the device can skip it by itself when the loss or a gradient is not finite.

        So the device does not idle between the synchronization and the update's launch.

        Returns:
            Whether the update was launched.
        """
        return False

    def _update(self) -> bool:
        """Update the parameters and reset the gradients; False if the update was skipped as these are not finite."""
        if self.config.optim.clip_grad_norm is not None:
            if self._scaler is not None:
                self._scaler.unscale_(self._optimizer)
            self._clip(self.config.optim.clip_grad_norm)
        is_updated = True
        if self._scaler is None:
            self._optimizer.step()
        else:
            before = self._scaler.get_scale()
            self._scaler.step(self._optimizer)
            self._scaler.update()
            is_updated = self._scaler.get_scale() >= before
        self._forget_gradients()
        return is_updated

    def _clip(self, norm: float) -> None:
        nn.utils.clip_grad_norm_(self._parameters, norm)

    def _forget_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def _has_bad_gradient(self) -> Tensor:
        """1 if one of this process's gradients is not finite, else 0; stays on the device.

        Always 0 where the update itself checks them: under ZeRO, and with fp16's loss scaler.
        """
        found = torch.zeros(1, device=self.process.device)
        gradients = [] if self.loss_scaler is not None else self._gradients()
        if gradients:
            # The loss scaler's check, one call for all: norms would take a tensor each. A scale of 1 changes no bit.
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, torch.ones_like(found))
        return found[0]

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]

    @cached_property
    def _parameters(self) -> tuple[nn.Parameter, ...]:
        """The net's parameters, as the engine has set them up; collecting them in each step takes milliseconds."""
        return tuple(self.net.parameters())

    def _make_momentum(self) -> None:
        """Allocate what `_set_momentum` fills."""
        return

    def _whole_momentum(self, parameter: nn.Parameter) -> Tensor:
        momentum: Tensor = self._optimizer.state[parameter][MOMENTUM]
        return momentum

    def _set_momentum(self, parameter: nn.Parameter, whole: Tensor) -> None:
        self._optimizer.state[parameter][MOMENTUM] = torch.empty_like(parameter).copy_(whole).detach()


def on_cpu(tensor: Tensor) -> Tensor:
    """A detached, contiguous copy on the CPU."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
