"""The runs in a folder of results: `TABLE/ROW/full/seed-1/`, or with `short-0.1` in place of `full`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepres.config import Config, load_config
from deepres.provenance import origin_text
from deepres.run_folder import CONFIG, FINISHED, MADE_BY, METRICS, NOT_FINITE
from paper_reproduction.length import Length
from paper_reproduction.rows import ReproductionError, Row, folders_in

# Settings that determine where, on what hardware and how a run is computed, but not what is trained.
_NOT_OF_THE_RECIPE = (
    "data.root", "data.download", "data.verify", "data.eval_image_size", "data.eval_shorter_side",
    "data.num_workers", "data.max_bad_images",
    "train.micro_batch_size", "train.accumulation", "train.eval_batch_size", "train.eval_every", "train.seed",
    "train.deterministic", "train.output", "train.run_dir", "train.overwrite", "train.resume", "train.save_every",
    "train.save_in_background", "train.keep_checkpoints", "engine.name", "engine.device", "engine.zero_stage",
    "engine.offload_optimizer", "engine.offload_parameters", "engine.bucket_mb", "engine.cuda_graphs",
    "engine.sync_batch_norm", "engine.rendezvous_timeout_s",
    "precision.channels_last",
)  # fmt: skip
_SYNTHETIC = "synthetic"
_DEFAULT_CROP, _DEFAULT_SIDE = 224, 256
State = Literal["finished", "diverged", "untested", "unfinished"]


@dataclass(frozen=True)
class Difference:
    """A setting that two configurations do not share."""

    key: str
    wanted: Any
    found: Any

    def __str__(self) -> str:
        found, wanted = ("unset" if value is None else value for value in (self.found, self.wanted))
        return f"{self.key} is {found}, not {wanted}"

    @property
    def is_another_net(self) -> bool:
        """Whether it makes the run one of another row: another net or data set (synthetic images are a trial)."""
        return self.key.startswith("model.") or (self.key == "data.name" and self.found != _SYNTHETIC)


def differences(wanted: Config, found: Config) -> list[Difference]:
    """The settings of net and recipe in which two configurations differ."""
    ours, theirs = _recipe(wanted), _recipe(found)
    return [Difference(key, ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]]


@dataclass(frozen=True)
class SeedRun:
    """A run of a row.

    Attributes:
        seed: its seed.
        folder: its folder.
        config: its resolved configuration.
        state: whether it finished, or ended because a number was not finite (which then is the row's result); untested
            if it was trained as a twin and not tested at this row's crop.
        step: the last step that it logged.
        error, top5_error: test error in % at its end; infinite if it diverged, NaN if it has none.
        batch_norm_sizes: over how many images batch norm computed its statistics, each number once, in the order of
            the run, which may have been resumed with another; empty if unknown.
        machines: the machines that trained it, with versions, each once, in the order of the run; empty if unknown.
        notes: given by `log.note`.
    """

    seed: int
    folder: Path
    config: Config
    state: State
    step: int
    error: float
    top5_error: float
    batch_norm_sizes: tuple[int, ...]
    machines: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def has_result(self) -> bool:
        """Whether it has a result that a table shows."""
        return self.state in ("finished", "diverged")


def seed_folder(row: Row, results: Path, length: Length, seed: int) -> Path:
    """The folder of this run of the row or a twin, which need not exist yet."""
    folders = [results / name / length.folder / f"seed-{seed}" for name in row.twins]
    return min(folders, key=lambda folder: (not (folder / FINISHED).exists(), not folder.exists()))


def runs_of(row: Row, results: Path) -> dict[Length, list[SeedRun]]:
    """The runs of a row and its twins: the longest first, by seed.

    Raises:
        ReproductionError: one is of another net, or its files cannot be read, or two are finished.
        ConfigError: a run's configuration cannot be read.
    """
    found: dict[Length, dict[int, list[Path]]] = {}
    for name in row.twins:
        for length, seed, folder in _seed_folders(results / name):
            found.setdefault(length, {}).setdefault(seed, []).append(folder)
    return {
        length: [_one_of(row, found[length][seed], seed) for seed in sorted(found[length])]
        for length in sorted(found, key=lambda each: each.fraction, reverse=True)
    }


def _one_of(row: Row, folders: list[Path], seed: int) -> SeedRun:
    """The run in one of these folders of the row and its twins: the one with a result, if any."""
    runs = [read_run(row, row.config, folder, seed) for folder in folders]
    ended = [run for run in runs if run.has_result]
    if len(ended) > 1:
        where = " and ".join(str(run.folder) for run in ended)
        raise ReproductionError(f"{where} are the same run, and both have ended: move one of them away")
    return (ended or runs)[0]


def outcome_file(wanted: Config, trained: Config) -> str:
    """The file in a run's folder that has its test error at another configuration's crop.

    `test-320.json`, or `test-320-of-480.json` if the shorter side is not that of the paper's rows.
    """
    crops = [(each.data.eval_image_size, each.data.eval_shorter_side) for each in (wanted, trained)]
    if crops[0] == crops[1]:
        return FINISHED
    size, side = crops[0][0] or _DEFAULT_CROP, crops[0][1]
    of_rows = _DEFAULT_SIDE if size == _DEFAULT_CROP else size
    return f"test-{size}.json" if side in (None, of_rows) else f"test-{size}-of-{side}.json"


def read_run(row: Row, wanted: Config, folder: Path, seed: int) -> SeedRun:
    """Read the run in a folder.

    Args:
        row: the row.
        wanted: its configuration, perhaps with overrides, which decides how to test.
        folder: of the run.
        seed: of the run.

    Raises:
        ReproductionError: the run is of another net or seed, or its files are damaged.
        ConfigError: its configuration cannot be read.
    """
    config = load_config(folder / CONFIG)
    wrong = [str(each) for each in differences(row.config, config) if each.is_another_net]
    if config.train.seed != seed:
        wrong.append(f"train.seed is {config.train.seed}, not {seed}")
    if wrong:
        raise ReproductionError(f"{folder} is no run of {row.name}: {'; '.join(wrong)}: move it away")
    metrics = _json_lines(folder / METRICS)
    step = max(_whole_numbers(metrics, "step"), default=0)
    state: State = "diverged" if metrics and metrics[-1].get("kind") == NOT_FINITE else "unfinished"
    error = top5_error = float("inf") if state == "diverged" else float("nan")
    if (folder / FINISHED).exists():
        step, *errors = _read_outcome(folder / FINISHED)
        outcome = folder / outcome_file(wanted, config)
        state = "finished" if outcome.exists() else "untested"
        if state == "finished":
            if outcome.name != FINISHED:
                step, *errors = _read_outcome(outcome)
            error, top5_error = errors
    sizes = _batch_norm_sizes(config, metrics)
    return SeedRun(seed, folder, config, state, step, error, top5_error, sizes, *_made_by(folder, metrics))


def _read_outcome(path: Path) -> tuple[int, float, float]:
    """Step, error and top-5 error in %."""
    try:
        end = json.loads(_text(path))
        error, top5_error = (100 * (1 - float(end[name])) for name in ("top1", "top5"))
        are_numbers = not any(isinstance(end[name], bool | str) for name in ("step", "top1", "top5"))
        if are_numbers and 0 <= top5_error <= error <= 100:
            return int(end["step"]), error, top5_error
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise ReproductionError(f"{path} is damaged: it must say step, top1 and top5, which are fractions")


def _batch_norm_sizes(config: Config, metrics: list[dict[str, Any]]) -> tuple[int, ...]:
    """From the metrics, which have a line with the plan for each time that the run began or was resumed."""
    of_all, micro_size = config.train.global_batch_size, config.train.micro_batch_size
    sizes = _whole_numbers(metrics, "micro_batch_size")
    if not sizes and isinstance(micro_size, int):  # the metrics are gone
        sizes = [micro_size]
    if config.engine.sync_batch_norm and of_all is not None:
        sizes = [of_all // each for each in _whole_numbers(metrics, "accumulation")] or sizes
    return tuple(dict.fromkeys(sizes))


def _made_by(folder: Path, metrics: list[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Machines and notes, from the metrics' line for each time that the run began or was resumed."""
    lines = [line for line in metrics if line.get("kind") == MADE_BY]
    try:
        machines = dict.fromkeys(origin_text(line) for line in lines)
        notes = dict.fromkeys(" ".join(line["note"].split()) for line in lines)
    except (KeyError, AttributeError):
        raise ReproductionError(
            f"{folder / METRICS} is damaged: a line of {MADE_BY} must say machine, versions and note"
        ) from None
    return tuple(machines), tuple(filter(None, notes))


def _seed_folders(row_folder: Path) -> Iterator[tuple[Length, int, Path]]:
    for folder in folders_in(row_folder):
        length = Length.of_folder(folder.name)
        if length is None:
            raise ReproductionError(f"{folder} must be called full, or short-0.1 for a tenth of the length")
        for run in folders_in(folder):
            number = run.name.removeprefix("seed-")
            if not number.isdecimal() or run.name != f"seed-{int(number)}":
                raise ReproductionError(f"{run} must be called seed-1 for the run with train.seed=1")
            if (run / CONFIG).exists():
                yield length, int(number), run
            elif (run / FINISHED).exists():
                raise ReproductionError(f"{run} lacks {CONFIG}, which says what was trained: move it away")


def _whole_numbers(lines: list[dict[str, Any]], key: str) -> list[int]:
    return [line[key] for line in lines if isinstance(line.get(key), int)]


def _recipe(config: Config) -> dict[str, Any]:
    """Settings of net, data and training, by `section.key`."""
    sections = config.model_dump(mode="json", exclude={"recompute", "log"})
    sections["model"] = config.model.resolved()
    sections["data"]["augmentation"] = config.data.chosen_augmentation
    settings = {f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()}
    return {key: value for key, value in settings.items() if key not in _NOT_OF_THE_RECIPE}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; an incomplete last line is ignored, a missing file is empty."""
    lines = _text(path).splitlines(keepends=True) if path.exists() else []
    try:
        values = [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise ReproductionError(f"{path} cannot be read: {error}") from None
    if not all(isinstance(value, dict) for value in values):
        raise ReproductionError(f"{path} cannot be read: expected JSON objects, a line each")
    return values


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReproductionError(f"{path} cannot be read: {error}") from None
