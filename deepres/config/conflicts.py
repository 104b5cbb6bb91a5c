"""Conflicts between settings of different sections of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepres.config.run_config import Config


def first_conflict(config: Config) -> str | None:
    """The message about the first conflict; None if there is none."""
    train, engine, recompute = config.train, config.engine, config.recompute
    is_auto, is_compiled = train.micro_batch_size == "auto", engine.compile == "units"
    conflicts = (
        (
            is_auto and (train.global_batch_size is None or train.accumulation is not None),
            "train.micro_batch_size auto needs train.global_batch_size, and no accumulation",
        ),
        (
            is_auto and recompute.budget is None and recompute.device_memory is None,
            "train.micro_batch_size auto needs recompute.device_memory or recompute.budget",
        ),
        (
            not is_auto and recompute.max_extra != type(recompute).model_fields["max_extra"].default,
            (
                "recompute.max_extra is for train.micro_batch_size=auto: with a batch that is given, the plan is the "
                "fastest in the memory asked for"
            ),
        ),
        (
            config.optim.fused and config.precision.compute == "fp16",
            (
                "optim.fused cannot be combined with precision.compute=fp16: if the loss scaler skips the first step, "
                "PyTorch begins the second with an uninitialised momentum"
            ),
        ),
        (
            engine.cuda_graphs and config.model.shortcut == "dropout",
            (
                "engine.cuda_graphs cannot be combined with model.shortcut=dropout, whose replays read the generator's "
                "state: switch the graphs off"
            ),
        ),
        (
            engine.cuda_graphs and recompute.device_memory is not None,
            (
                "engine.cuda_graphs cannot be combined with recompute.device_memory: what a recorded pass holds is not "
                "free for evaluation and the optimizer; give recompute.budget"
            ),
        ),
        (
            engine.cuda_graphs and is_auto,
            "engine.cuda_graphs needs a number as train.micro_batch_size",
        ),
        (
            is_compiled and is_auto,
            "engine.compile=units needs a number as train.micro_batch_size: each that is tried would be compiled",
        ),
        (
            is_compiled and not config.precision.channels_last,
            (
                "engine.compile=units needs precision.channels_last=true: compiled convolutions work in that layout, "
                "and would copy the images into it and back in every unit"
            ),
        ),
    )
    return next((text for is_so, text in conflicts if is_so), None)
