"""A run's folder: one process's at a time, and nothing of an old run in a new one."""

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from deepres.config import Config, ConfigError
from deepres.run_folder import RunFolder, check_run_folder, is_locked, lock_run_folder, run_folder_path
from tests.processes import environment

HOLDER = """
    import sys
    from pathlib import Path
    from deepres.run_folder import lock_run_folder

    with lock_run_folder(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


def _config(**train):
    return Config(
        model={"depth": 11},
        data={"name": "synthetic"},
        train={"max_steps": 1, "global_batch_size": 4, **train},
    )


def test_a_folder_that_a_process_holds_is_refused_until_it_ends_however_that_is(tmp_path):
    folder = tmp_path / "run"
    assert not is_locked(folder)
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder)]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        assert is_locked(folder)
        with (
            pytest.raises(ConfigError, match="another process is writing a run to"),
            lock_run_folder(folder, 0.2),
        ):
            pass
        holder.kill()
    assert not is_locked(folder)
    with lock_run_folder(folder, wait_s=0):
        assert is_locked(folder)


def test_a_folder_that_stays_empty_goes(tmp_path):
    with lock_run_folder(tmp_path / "made" / "for" / "empty"):
        pass
    with lock_run_folder(tmp_path / "used"):
        (tmp_path / "used" / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_a_run_that_replaces_another_leaves_none_of_its_files_and_all_others(tmp_path):
    of_a_run = ("metrics.jsonl", "plan.json", "curves.png", "finished.json", "model.safetensors",
                "out_of_memory.pickle", "events.out.tfevents.1.host.2.0")  # fmt: skip
    for name in (*of_a_run, "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="holds another run"):
        check_run_folder(_config(run_dir=tmp_path), tmp_path)
    config = _config(run_dir=tmp_path, overwrite=True)
    check_run_folder(config, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    RunFolder(tmp_path, config).metrics.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "metrics.jsonl", "notes.txt"]


def test_files_of_such_names_that_are_no_run_s_stay(tmp_path):
    (tmp_path / "plan.json").touch()
    RunFolder(tmp_path, _config(run_dir=tmp_path, overwrite=True)).metrics.close()
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "curves.png", "model.safetensors"])
def test_a_file_that_cannot_be_written_is_one_line(tmp_path, name):
    (tmp_path / name).mkdir()
    config = _config(run_dir=tmp_path, resume="auto")
    begin = check_run_folder if name == "metrics.jsonl" else lambda *them: RunFolder(*reversed(them))
    with pytest.raises(ConfigError, match=f"{name} cannot be written: Is a directory"):
        begin(config, tmp_path)


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "20260102-030405")
    config = _config(output=tmp_path)
    names = [run_folder_path(config, Path("net.yaml")).name for _ in range(3)]
    assert names == ["net-20260102-030405", "net-20260102-030405-2", "net-20260102-030405-3"]


def test_a_lock_is_not_one_of_a_folder_that_was_removed_meanwhile(tmp_path):
    """As it is by a run that ends and has found nothing to leave."""
    folder = tmp_path / "run"
    held: list[bool] = []
    waiting = threading.Thread(target=lambda: held.append(_held(folder)))
    with lock_run_folder(folder):
        waiting.start()
        time.sleep(0.3)
    waiting.join()
    assert held == [True]


def _held(folder: Path) -> bool:
    with lock_run_folder(folder, wait_s=10):
        return is_locked(folder)
