"""Several processes on the same files: no one waits for ever, and no one reads half of anything."""

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.dataset.feature_cache import read_features
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.features.cache_file import row_checksums
from tests.campaigns.kills import FORKS, Job, start
from tests.conftest import Artifacts, command, one_line, write_params
from tests.helpers.repository import Repository

READERS = 8


def read_until(path: Path, stop: Any, ready: Any, seen: Any) -> None:
    """What this reader found in the file, each time whole: its first number, or what went wrong."""
    found = set()
    ready.put(True)
    try:
        while not stop.is_set():
            cache = read_features(path)
            FeatureDataset(cache, cache.ids, torch.device("cpu"))
            found.add(bytes(cache.array[0, :8].tobytes()))
        seen.put(found)
    except BaseException as error:
        seen.put(error)


def test_eight_readers_of_a_features_file_that_is_replaced_under_their_eyes(
    tiny: Artifacts, tmp_path: Path
) -> None:
    """As experiments do that come and go; every row is checked against its checksum."""
    other = tmp_path / "other.h5"
    content = bytearray(tiny.features.read_bytes())
    cache = read_features(tiny.features)
    rows, width = cache.array.shape
    place = content.index(cache.array.tobytes())
    content[place : place + 2 * rows * width] = (cache.array * 2).tobytes()
    sums = content.index(cache.checksums.tobytes())
    content[sums : sums + 4 * rows] = row_checksums(cache.array * 2).tobytes()
    other.write_bytes(content)
    path = tmp_path / "features.h5"
    shutil.copyfile(tiny.features, path)
    stop, ready, seen = FORKS.Event(), FORKS.Queue(), FORKS.Queue()
    arguments = (path, stop, ready, seen)
    readers = [FORKS.Process(target=read_until, args=arguments) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    for _ in readers:
        ready.get(timeout=120)  # torch takes its seconds
    for turn in range(60):
        scratch = tmp_path / "scratch"
        shutil.copyfile(other if turn % 2 == 0 else tiny.features, scratch)
        scratch.replace(path)
        time.sleep(0.05)
    stop.set()
    found = [seen.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join()
    whole = {bytes(read_features(one).array[0, :8].tobytes()) for one in (tiny.features, other)}
    assert all(one <= whole for one in found), found
    assert set.union(*found) == whole


def test_two_runs_at_once_one_after_the_other_or_one_clear_line(
    tiny: Artifacts, tmp_path: Path
) -> None:
    """The lock is DVC's; what counts is that nothing is left half done."""
    repository = Repository(tmp_path / "repository", tiny)
    repository.take_over(tiny)
    repository.write(evaluate={"beam_size": 1})
    both = [
        subprocess.Popen(
            ["dvc", "repro"],
            cwd=repository.folder,
            env=repository.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [one.communicate(timeout=300)[0] for one in both]
    codes = [one.returncode for one in both]
    assert 0 in codes, said
    for code, text in zip(codes, said, strict=True):
        assert code == 0 or "lock" in text.lower(), text
        assert "Traceback" not in text
    assert "Data and pipelines are up to date." in repository.run("dvc", "repro")


def test_a_second_run_of_the_same_training_is_refused_and_can_take_over(
    tiny: Artifacts, tmp_path: Path
) -> None:
    """As after `dvc` alone was killed: its stage works on, and `dvc repro` starts another."""
    params = write_params(tmp_path / "params.yaml", train={"epochs": 1000, "patience": 1000})
    inputs = {
        **{"features": tiny.features, "captions": tiny.table},
        **{"vocabulary": tiny.vocabulary, "params": params},
    }
    outs = {"out": "model.safetensors", "history": "history.csv"}

    def arguments(folder: Path) -> list[str]:
        paths = inputs | {option: folder / name for option, name in outs.items()}
        return ["train", *(str(word) for o, p in paths.items() for word in (f"--{o}", p))]

    first = start(Job("train", arguments, tuple(outs.values())), tmp_path)
    while not (tmp_path / ".model.safetensors.resume/state.safetensors").exists():
        assert first.exitcode is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    said = one_line(command(*arguments(tmp_path)))
    assert f"process {first.pid} is already writing {tmp_path / 'model.safetensors'}" in said
    assert f"kill {first.pid}" in said
    first.terminate()
    first.join()
    assert first.exitcode == 130
    second = start(Job("train", arguments, ()), tmp_path)
    while "resuming an interrupted run after epoch" not in (tmp_path / "log").read_text():
        assert second.exitcode is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    second.kill()
    second.join()
