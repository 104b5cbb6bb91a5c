"""Export nets to files for other programs; a file is kept only if it computes the same as the net."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deepres.commit import replace_file
from deepres.config import ConfigError
from deepres.tensor_files import read_safetensors
from deepres.trained_net import recorded_net
from deepres.weights import run_folder_of

ExportFormat = Literal["safetensors", "torchscript", "onnx"]
SUFFIXES: dict[ExportFormat, str] = {"safetensors": ".safetensors", "torchscript": ".pt", "onnx": ".onnx"}
_MOST_DIFFERENCE = 1e-4


def export_path(weights: Path, kind: ExportFormat) -> Path:
    """The default path of an export: in the run's folder, with the checkpoint's name if it is from one."""
    folder = weights if weights.is_dir() else weights.parent
    run_folder = run_folder_of(weights)
    stem = "export" if folder == run_folder else f"export-{folder.absolute().name}"
    return run_folder / f"{stem}{SUFFIXES[kind]}"


def export(
    net: nn.Module, metadata: Mapping[str, str], target: Path, kind: ExportFormat, image_size: int
) -> float:
    """Write a net to a file, and compare the file's logits with the net's on the same images.

    Args:
        net: in evaluation mode, on the CPU.
        metadata: of a `.safetensors`: the net's `net_metadata`.
        target: the file.
        kind: the format; `torchscript` and `onnx` accept any batch size.
        image_size: of the images that the net is traced and compared with.

    Returns:
        The largest difference of the logits, relative to the largest logit.

    Raises:
        ConfigError: the extra is not installed, or the file computes something else and was not kept.
        SaveError: it cannot be written.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, image_size, image_size, generator=generator)
    writers: dict[ExportFormat, Callable[[nn.Module, Path, Tensor], Callable[[Tensor], Tensor]]] = {
        "safetensors": partial(_write_safetensors, metadata),
        "torchscript": _write_torchscript,
        "onnx": _write_onnx,
    }
    differences: list[float] = []

    def write_and_compare(path: Path) -> None:
        run = writers[kind](net, path, images[:2])
        with torch.no_grad():
            for batch in (images, images[:1]):
                expected = net(batch)
                difference = (run(batch) - expected).abs().max() / expected.abs().max()
                differences.append(float(difference))
        largest = float(np.max(differences))  # unlike `max`, NaN if any of them is
        if not largest <= _MOST_DIFFERENCE:
            raise ConfigError(
                f"{target} was not written: its logits differ from the net's by {largest:.2g} of the "
                f"largest, of which {_MOST_DIFFERENCE:g} is allowed"
            )

    replace_file(target, write_and_compare)
    return max(differences)


def _write_safetensors(
    metadata: Mapping[str, str], net: nn.Module, path: Path, _: Tensor
) -> Callable[[Tensor], Tensor]:
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    save_file(tensors, path, dict(metadata))
    return recorded_net(read_safetensors(path))


def _write_torchscript(net: nn.Module, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but still what C++ programs load
        with path.open("wb") as file:  # so that a file that cannot be written raises OSError
            torch.jit.save(torch.jit.trace(net, images), file)
        loaded: Callable[[Tensor], Tensor] = torch.jit.load(path)
    return loaded


def _write_onnx(net: nn.Module, path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    missing = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(f"onnx needs the extra: pip install 'deepres[onnx]' ({missing[0]} is missing)")
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # warns of missing torchvision, not needed here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (images,),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(batch: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": np.ascontiguousarray(batch.numpy())})
        return torch.from_numpy(logits)

    return run
