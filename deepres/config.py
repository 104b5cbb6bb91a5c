"""The configuration of a run: its schema, defaults and checks.

A run is a YAML file with the sections below, plus `section.key=value` from the command line. Unknown keys are
errors. `deepres.load_config.load_config` reads it; what that returns is checked and frozen.

A file may begin with `base: FILE`, relative to itself: another such file, which has no base of its own. Their
sections are merged key by key. The file's own keys win over the base's, the command line's over both. A resolved
configuration, such as a run folder's `config.yaml`, has no base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import Field, model_validator

from deepres.config_fields import (
    AnyFloat,
    Bytes,
    HostPath,
    NonNegativeFloat,
    NumClasses,
    PositiveFloat,
    PositiveInt,
    Section,
)
from deepres.conflicts import first_conflict
from deepres.data_config import DataConfig
from deepres.net_options import (
    ACTING_ON,
    Activation,
    Block,
    Family,
    Matching,
    Preactivation,
    ShortcutName,
    StrideOn,
    default_block,
    default_matching,
    default_stem_activation,
)
from deepres.wording import listed

FP32_BYTES = 4
"""Of a parameter, its gradient and its momentum, in whatever the net is computed."""


MOST_LAYERS = 30_000
"""Of a net: to build one of more takes minutes."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line for the person who wrote it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ModelConfig(Section):
    """The net; see `deepres.build_resnet`, whose arguments these are."""

    depth: Annotated[int, Field(le=MOST_LAYERS)]
    dataset: Family = "cifar"
    num_classes: NumClasses | None = None
    """By default as many as the data has."""
    block: Block | None = None
    activation: Activation = "full_preactivation"
    shortcut: ShortcutName = "identity"
    matching: Matching | None = None
    stride_on: StrideOn = "1x1"
    stem_activation: bool | None = None
    preactivation: Preactivation = "shared"
    shortcut_scale: AnyFloat = 0.5
    residual_scale: AnyFloat = 0.5
    gate_bias: AnyFloat = -6.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        for key, where in ACTING_ON.items():
            value = getattr(self, key)
            if value != type(self).model_fields[key].default and not {self.shortcut, self.activation} & set(
                where
            ):
                what = "activation" if key == "preactivation" else "shortcut"
                raise ValueError(
                    f"{key}={value} has no effect with {what}={getattr(self, what)}; it is for {' or '.join(where)}"
                )
        return self

    @property
    def chosen_block(self) -> Block:
        """`block`, or the one that the paper uses at this depth."""
        return self.block or default_block(self.depth, self.dataset)

    def resolved(self) -> dict[str, Any]:
        """All settings, with those that the net's kind decides if they are unset."""
        block, matching, in_stem = self.chosen_block, self.matching, self.stem_activation
        return self.model_dump(mode="json") | {
            "block": block,
            "matching": matching or default_matching(self.dataset, block),
            "stem_activation": default_stem_activation(self.dataset) if in_stem is None else in_stem,
        }

    def building(self, num_classes: int) -> dict[str, Any]:
        """The arguments of `deepres.build_resnet` for a net that tells so many classes apart."""
        return self.model_dump() | {"num_classes": num_classes}


class OptimConfig(Section):
    """SGD and its schedule."""

    learning_rate: PositiveFloat = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 1e-4
    fused: bool = False
    """An update in one kernel for all parameters."""
    clip_grad_norm: PositiveFloat | None = None
    schedule_unit: Literal["iterations", "epochs"] = "epochs"
    """What `milestones` and `warmup` count."""
    milestones: tuple[PositiveInt, ...] = ()
    """When the learning rate is multiplied by `factor`."""
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup: Annotated[int, Field(ge=0)] = 0
    """How long `warmup_learning_rate` holds (the paper: 0.01 for 400 iterations)."""
    warmup_learning_rate: PositiveFloat = 0.01

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class TrainConfig(Section):
    """Length, batch, reproducibility and checkpoints of a run."""

    epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    """Optimizer steps; the run ends at whichever of `epochs` and `max_steps` comes first."""
    global_batch_size: PositiveInt | None = None
    """Images an optimizer step sees: micro batch × accumulation × processes. Give this, the micro batch, or
    either with the accumulation; the rest follows."""
    micro_batch_size: Literal["auto"] | PositiveInt | None = None
    """`auto`: the largest that fits `recompute.device_memory` or `recompute.budget`."""
    accumulation: PositiveInt | None = None
    eval_batch_size: PositiveInt | None = None
    """Images a process tests at once; by default the micro batch."""
    eval_every: PositiveInt = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    deterministic: bool = False
    """Only algorithms whose results are the same in every run."""
    output: HostPath = Path("runs")
    """Runs are written to `output/<name of the config>-<date>`."""
    run_dir: HostPath | None = None
    """Write to this folder instead."""
    overwrite: bool = False
    """Remove the run that `run_dir` holds, if it holds one."""
    resume: Literal["auto", "never"] | HostPath = "never"
    """Go on from a checkpoint: the newest whole one in `run_dir` (and start if there is none), or a given one."""
    save_every: (
        Annotated[str, Field(pattern=r"^[1-9]\d{0,8} (steps?|epochs?|minutes?)$", coerce_numbers_to_str=True)]
        | None
    ) = "30 minutes"
    """Steps, epochs or minutes between checkpoints; null: none at all, not even at the end."""
    save_in_background: Literal["auto", "always", "never"] = "auto"
    """Train on while a checkpoint is written; auto: where waiting would take more than 2 % of the time."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest stay."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("give epochs or max_steps")
        if self.resume == "auto" and self.run_dir is None:
            raise ValueError("resume=auto needs run_dir, the folder of the run to go on with")
        if self.overwrite and (self.run_dir is None or self.resume != "never"):
            raise ValueError("overwrite needs run_dir, and resume=never")
        return self

    def num_steps(self, steps_per_epoch: int) -> int:
        """The optimizer step that the run ends with."""
        limits = [self.max_steps, (self.epochs or 0) * steps_per_epoch or None]
        return min(limit for limit in limits if limit is not None)


class EngineConfig(Section):
    """How a step is run across processes."""

    name: Literal["plain", "deepspeed", "fairscale"] = "plain"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed: 1 shards optimizer states over the processes, 2 gradients too, 3 parameters too."""
    offload_optimizer: bool = False
    """DeepSpeed, stages 1 to 3: optimizer states and updates on the CPU."""
    offload_parameters: bool = False
    """DeepSpeed, stage 3: parameters on the CPU."""
    bucket_mb: Annotated[float, Field(gt=0, le=1_000_000)] = 25.0
    """Gradients communicated at once, at most; never more than the model has. ZeRO 0 communicates all at once."""
    sync_batch_norm: bool = False
    """Batch statistics over all processes. It takes no memory of its own in fp32; in bf16 and fp16 a batch norm's
    backward pass holds the gradient of its input in fp32 beside it, which is in no prediction."""
    compile: Literal["none", "units"] = "none"
    """`units`: residual units as compiled code, one graph for all that are alike. What these keep is measured before a
    run starts; `tools/profile_memory.py` predicts eager units', up to a fifth more or less."""
    cuda_graphs: bool = False
    """Replay a pass's kernels as one CUDA graph; `plain`, one process on a GPU. Its activations stay allocated:
    evaluation needs memory of its own, and `log.memory` does not see them."""
    meeting_timeout_s: PositiveFloat = 45.0
    """Seconds that the processes wait at the start for the last of them."""

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
            raise ValueError(f"compile=units works without {what}: switch one of them off")
        return self

    def bucket_elements(self, num_parameters: int) -> int:
        """How many fp32 gradients are communicated at once, of a model of so many parameters."""
        return max(1, min(int(self.bucket_mb * 1e6 / FP32_BYTES), num_parameters))


class RecomputeConfig(Section):
    """What is discarded in the forward pass and replayed in the backward pass."""

    segments: Literal["none", "sqrt"] | PositiveInt = "none"
    """Uniform segments over the units: how many, or the square root of the number of units."""
    budget: Bytes | None = None
    """The fastest plan whose activations take no more than this (`2GiB`)."""
    device_memory: Bytes | Literal["auto"] | None = None
    """The fastest plan with which training takes no more than this of a device, or than it has free. Of a GPU,
    PyTorch's allocator then gets no more than that number of bytes in each process. Not counted are an evaluation with
    a larger `train.eval_batch_size` and, on a CPU, the copy of a checkpoint that is saved and what is offloaded."""
    plan: HostPath | None = None
    """A plan that `Plan.save` wrote."""
    max_extra: Annotated[float, Field(ge=0)] = 0.5
    """With `train.micro_batch_size: auto`: how much longer than with everything kept a step may take."""

    @model_validator(mode="after")
    def _check(self) -> RecomputeConfig:
        given = [name for name in ("budget", "device_memory", "plan") if getattr(self, name) is not None]
        if self.segments != "none":
            given.insert(0, "segments")
        if len(given) > 1:
            other = "segments=none" if given[0] == "segments" else f"{given[0]}=null"
            raise ValueError(
                f"give one of segments, budget, device_memory and plan, got {listed(given)}: recompute.{other} "
                f"leaves {given[0]} out"
            )
        return self


class PrecisionConfig(Section):
    """Number formats; parameters and batch-norm statistics are always fp32."""

    compute: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 run under autocast, fp16 (CUDA only) with loss scaling."""
    channels_last: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.compute]

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of images and activations."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class LogConfig(Section):
    """What a run tells."""

    every: PositiveInt = 50
    """Steps between lines."""
    note: str = ""
    """A remark on the run, for `metrics.jsonl` and the tables of `tools/reproduce_paper.py`."""
    tensorboard: bool = False
    plots: bool = True
    """Draw the curves at the end, where matplotlib is installed."""
    memory: bool = False
    """On a GPU: write each step's memory to `metrics.jsonl`."""
    memory_history: bool = False
    """On a GPU: note who allocates what, which slows steps down, and leave a snapshot of it if memory runs out."""


class Config(Section):
    """A run."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    engine: EngineConfig = EngineConfig()
    recompute: RecomputeConfig = RecomputeConfig()
    precision: PrecisionConfig = PrecisionConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        conflict = first_conflict(self)
        if conflict is not None:
            raise ValueError(conflict)
        return self

    @property
    def parameters_format(self) -> torch.memory_format:
        """The layout of parameters: sharding engines flatten them, and have them contiguous."""
        return self.precision.memory_format if self.engine.name == "plain" else torch.contiguous_format

    def to_yaml(self) -> str:
        """All settings, defaults included; `load_config` reads them back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
