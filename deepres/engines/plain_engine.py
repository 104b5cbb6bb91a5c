"""PyTorch alone: one process, or DistributedDataParallel over several."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deepres.batch_sizes import BatchSizes
from deepres.config import Config
from deepres.distributed import Process
from deepres.engines.base import Engine
from deepres.engines.cuda_graph import OnCuda, RecordedPass
from deepres.gradients import allocate_gradients
from deepres.optim import sgd


class PlainEngine(Engine):
    """Every process holds all model states; gradients are all-reduced."""

    def __init__(self, net: nn.Module, config: Config, process: Process, sizes: BatchSizes) -> None:
        super().__init__(net, config, process, sizes)
        self.module.to(process.device)
        self.module.to(memory_format=config.parameters_format)  # type: ignore[call-overload]  # the stubs lack it
        self._optimizer = sgd(net.parameters(), config.optim)
        if config.precision.compute == "fp16":
            self._scaler = torch.amp.GradScaler(process.device.type)
        self._recorded: RecordedPass | None = None
        if config.engine.cuda_graphs:
            allocate_gradients(net)
            self._recorded = RecordedPass(partial(super()._pass, is_last=True), OnCuda())
        if process.world_size > 1:
            with warnings.catch_warnings():
                # About `broadcast_buffers`, whose replacement only PyTorch 2.13 and later have.
                warnings.simplefilter("ignore", FutureWarning)
                self.module = DistributedDataParallel(
                    self.module,
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                    bucket_cap_mb=config.engine.bucket_mb * 1e6 / 2**20,  # in MiB
                )

    def _accumulating(self, *, is_last: bool) -> AbstractContextManager[Any]:
        if is_last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()

    def run_eagerly(self) -> None:
        """See `Engine`."""
        self._recorded = None

    def _pass(self, images: Tensor, labels: Tensor, *, is_last: bool) -> Tensor:
        if self._recorded is not None:
            return self._recorded(images, labels)
        return super()._pass(images, labels, is_last=is_last)

    def _update_unless_bad(self, loss: Tensor, num_bad: Tensor) -> bool:
        if not self.config.optim.fused:
            return False
        # How a loss scaler makes a fused optimizer skip a step.
        self._optimizer.found_inf = 1 - (loss.isfinite() & (num_bad == 0)).float()
        return self._update()

    def _forget_gradients(self) -> None:
        if self._recorded is None:
            super()._forget_gradients()
        else:  # the recorded pass adds to these very tensors
            torch._foreach_zero_(self._gradients())
