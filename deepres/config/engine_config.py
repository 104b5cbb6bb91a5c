"""The section `engine` of a configuration: how processes run a training step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deepres.config.fields import PositiveFloat, Section

FP32_BYTES = 4
"""Bytes of a parameter, a gradient or a momentum, whatever `precision.compute` is."""


class EngineConfig(Section):
    """How processes run a training step."""

    name: Literal["plain", "deepspeed", "fairscale"] = "plain"
    """`plain`: one process, or DistributedDataParallel; `fairscale` shards optimizer states; `deepspeed`: ZeRO."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU if there is one."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed: 1 shards optimizer states over the processes, 2 also gradients, 3 also parameters."""
    offload_optimizer: bool = False
    """DeepSpeed, stages 1 to 3: optimizer states and updates on the CPU."""
    offload_parameters: bool = False
    """DeepSpeed, stage 3: parameters on the CPU."""
    bucket_mb: Annotated[float, Field(gt=0, le=1_000_000)] = 25.0
    """Largest gradient bucket in MB, clamped to the model's size. ZeRO 0 communicates all gradients at once."""
    sync_batch_norm: bool = False
    """Compute batch statistics over all processes. In fp32 this takes no extra memory; in bf16 and fp16 a batch norm's
    backward pass also holds its input's gradient in fp32, which memory predictions do not include."""
    compile: Literal["none", "units"] = "none"
    """`units`: compile residual units, one graph for all that are alike. What compiled units keep for the backward pass
    is measured before a run starts; `tools/profile_memory.py` predicts eager units, which keep up to a fifth more or
    less."""
    cuda_graphs: bool = False
    """Replay a pass's kernels as one CUDA graph; only for `plain` with one process on a GPU. The graph's activations
    stay allocated: evaluation needs memory of its own, and `log.memory` does not see them."""
    rendezvous_timeout_s: PositiveFloat = 45.0
    """Seconds that processes wait for one another at the start."""

    @model_validator(mode="after")
    def _check(self) -> EngineConfig:
        if self.name != "deepspeed":
            for key in ("zero_stage", "offload_optimizer", "offload_parameters"):
                if getattr(self, key):
                    raise ValueError(f"{key} needs engine.name=deepspeed, got engine.name={self.name}")
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3, got 0")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"offload_parameters needs zero_stage 3, got {self.zero_stage}")
        if self.cuda_graphs and (self.name != "plain" or self.compile != "none"):
            what = "compile=none" if self.name == "plain" else "name=plain"
            raise ValueError(
                f"cuda_graphs needs engine.{what}, got name={self.name} and compile={self.compile}"
            )
        if self.compile == "units" and (self.sync_batch_norm or self.zero_stage == 3):
            what = "sync_batch_norm" if self.sync_batch_norm else "zero_stage 3"
            raise ValueError(f"compile=units cannot be combined with {what}: switch one of them off")
        return self

    def bucket_elements(self, num_parameters: int) -> int:
        """The number of fp32 gradients in a bucket, for a model of `num_parameters`."""
        return max(1, min(int(self.bucket_mb * 1e6 / FP32_BYTES), num_parameters))
