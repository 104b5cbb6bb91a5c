"""Finding and loading weights: of a run, a checkpoint, or a file on its own."""

from __future__ import annotations

from pathlib import Path

from deepres.checkpoints.saving import checkpoints_in
from deepres.checkpoints.snapshot import CONFIG, FILES, MODEL
from deepres.commit import MANIFEST, verify_file
from deepres.config import ConfigError
from deepres.run_folder import CHECKPOINTS
from deepres.run_folder import CONFIG as RUN_CONFIG
from deepres.tensor_files import TensorFile, read_tensor_file


def load_weights(path: Path) -> TensorFile:
    """A net's parameters and buffers from a run's folder, a checkpoint, a `.safetensors` or a `.pt` of tensors.

    Nothing in a file is executed (`read_tensor_file`). A checkpoint's file is verified against its manifest.

    Raises:
        ConfigError: there are no weights at `path`, or they are damaged or refused.
    """
    try:
        path = _weights_file(path)
        if path.name == MODEL and (path.parent / MANIFEST).exists():
            verify_file(path, FILES)
        return read_tensor_file(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def num_classes_of(weights: TensorFile) -> int:
    """The number of classes of the net with these weights.

    Raises:
        ConfigError: they are not of a deepres net.
    """
    last = weights.tensors.get("head.linear.weight")
    if last is None or last.dim() != 2:
        raise ConfigError(
            f"{weights.path} holds no weights of a deepres net: head.linear.weight is missing (those of other "
            "libraries: tools/export.py FILE --source …)"
        )
    return last.shape[0]


def config_file_of(weights: Path) -> Path | None:
    """The configuration file of the run or checkpoint that weights are in; None if they are in neither.

    A checkpoint's is JSON, and thus YAML, too.

    Args:
        weights: a run's folder, a checkpoint, or a file of weights.

    Raises:
        ConfigError: `weights` does not exist, or cannot be read.
    """
    try:
        if not weights.exists():
            raise ConfigError(f"there is no {weights}")
        folder = weights if weights.is_dir() else weights.parent
        # Other libraries, too, have a config.json beside their weights.
        of_checkpoint = [folder / CONFIG] if (folder / MANIFEST).exists() else []
        files = (folder / RUN_CONFIG, *of_checkpoint, run_folder_of(weights) / RUN_CONFIG)
        return next((file for file in files if file.is_file()), None)
    except OSError as error:
        raise ConfigError(f"{weights} cannot be read: {error}") from None


def run_folder_of(weights: Path) -> Path:
    """The folder of the run that weights are from; for weights that are not from a run, their own folder."""
    folder = weights if weights.is_dir() else weights.parent
    around = folder.absolute().parent
    return around.parent if around.name == CHECKPOINTS else folder


def _weights_file(path: Path) -> Path:
    """The file of a run's or a checkpoint's weights; a file is returned as it is.

    Raises:
        ConfigError: there is none.
    """
    if path.is_dir():
        candidates = [path / MODEL, *(folder / MODEL for folder in checkpoints_in(path / CHECKPOINTS))]
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            raise ConfigError(f"{path} holds no {MODEL}")
        path = found
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    return path
