"""fairscale: optimizer states sharded (OSS), gradients reduced to their owner (ShardedDataParallel)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from deepres.batch_sizes import BatchSizes
from deepres.config import Config
from deepres.distributed import Process, start_process_group
from deepres.engines.base import Engine, step_with_scaler
from deepres.memory.states import bucket_elements
from deepres.optim import sgd_settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fairscale's last release imports what newer versions deprecate
    import torch
    import torch.distributed as dist
    from fairscale.nn.data_parallel import ShardedDataParallel
    from fairscale.optim import OSS
    from fairscale.optim.grad_scaler import ShardedGradScaler


class FairscaleEngine(Engine):
    """Every process has all parameters, and the gradients and momentum of its share of them."""

    def __init__(self, net: nn.Module, config: Config, process: Process, sizes: BatchSizes) -> None:
        super().__init__(net, config, process, sizes)
        start_process_group(process)
        self.module.to(process.device)
        trained = [p for p in net.parameters() if p.requires_grad]
        self._optimizer = OSS(params=trained, optim=torch.optim.SGD, **sgd_settings(config.optim))
        self._owners = {
            parameter: rank
            for rank, groups in enumerate(self._optimizer.partition_parameters())
            for group in groups
            for parameter in group["params"]
        }
        # With one process there is nobody to shard with, and the wrapper's hooks would not run.
        self._scaler = ShardedGradScaler() if config.precision.compute == "fp16" else None
        num_elements = bucket_elements(config.engine, sum(p.numel() for p in trained))
        self.module = ShardedDataParallel(
            self.module, self._optimizer, broadcast_buffers=False, reduce_buffer_size=num_elements
        )

    @contextmanager
    def _accumulating(self, *, is_last: bool) -> Iterator[None]:
        with nullcontext() if is_last else self.module.no_sync():  # type: ignore[operator]  # the wrapper's
            yield

    @property
    def loss_scaler(self) -> torch.amp.GradScaler | None:
        """See `Engine`."""
        return self._scaler

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

    def _backward(self, loss: Tensor, *, is_last: bool) -> None:  # noqa: ARG002
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def _update(self) -> bool:
        if self.config.optim.clip_grad_norm is not None:
            if self._scaler is not None:
                self._scaler.unscale_(self._optimizer)
            self._optimizer.clip_grad_norm(self.config.optim.clip_grad_norm)
        is_updated = True
        if self._scaler is None:
            self._optimizer.step()
        else:
            is_updated = step_with_scaler(self._scaler, self._optimizer)
        self.module.zero_grad(set_to_none=True)
        return is_updated

    def _whole_momentum(self, parameter: nn.Parameter) -> Tensor:
        owner = self._owners[parameter]
        if owner == self.process.rank:
            momentum: Tensor = self._optimizer.optim.state[parameter]["momentum_buffer"]
        else:
            momentum = torch.empty_like(parameter)
        if self.process.world_size > 1:
            dist.broadcast(momentum, owner)
        return momentum

    def _set_momentum(self, parameter: nn.Parameter, whole: Tensor) -> None:
        if self._owners[parameter] == self.process.rank:
            momentum = torch.empty_like(parameter).copy_(whole).detach()
            self._optimizer.optim.state[parameter]["momentum_buffer"] = momentum
