"""A full disk: one line, no partial files, and existing files stay."""

import errno
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.dataset.feature_cache import read_features
from pipeline.extraction.feature_writer import create_features
from pipeline.runtime.checkpoint import discard_if_complete
from tests.conftest import Artifacts, command, one_line, write_params
from tests.helpers.ranks import World


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def extraction(tiny: Artifacts, folder: Path, params: Path) -> list[object]:
    """The command of an extraction to this folder."""
    inputs = ["--images", tiny.images, "--backbone", tiny.backbone, "--unreadable", tiny.unreadable]
    return ["extract", *inputs, "--out", folder / "features.h5", "--params", params]


def training(tiny: Artifacts, folder: Path, params: Path) -> list[object]:
    """The command of a training in this folder."""
    inputs = ["--features", tiny.features, "--captions", tiny.table]
    outs = ["--out", folder / "model.safetensors", "--history", folder / "history.csv"]
    return ["train", *inputs, "--vocabulary", tiny.vocabulary, *outs, "--params", params]


def fail_and_resume(
    run: list[object], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> subprocess.CompletedProcess[str]:
    """The run once the disk is larger, after one that filled it."""
    with monkeypatch.context() as patched:  # as if the space was free when it was checked
        patched.setattr("pipeline.extraction.feature_writer._require_space", lambda *_: None)
        assert "no space left on the disk" in one_line(command(*run))
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    return command(*run)


def test_extraction(small_disk: Path, tiny: Artifacts) -> None:
    result = command(*extraction(tiny, small_disk, tiny.params))
    assert "no space left on the disk" in one_line(result)
    assert list(small_disk.iterdir()) == []


def test_training_keeps_an_older_model(small_disk: Path, tiny: Artifacts) -> None:
    out = small_disk / "model.safetensors"
    out.write_text("older")
    result = command(*training(tiny, small_disk, tiny.params))
    assert "no space left on the disk" in one_line(result)
    assert out.read_text() == "older"


def test_a_disk_that_fills_up_during_extraction(small_disk: Path, tiny: Artifacts) -> None:
    """Another program uses the space that was free at the start."""
    cache = read_features(tiny.features)
    path = small_disk / "f.h5"
    with create_features(path, cache.ids, (256,), "float16", cache.recipe) as writer:
        (small_disk / "other").write_bytes(bytes(40_000))
        with pytest.raises(OSError, match="No space left") as error:
            writer.append(cache.array[:, :256])
    assert error.value.errno == errno.ENOSPC


def test_an_extraction_resumes_once_there_is_space(
    small_disk: Path, tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = write_params(
        tmp_path / "p.yaml", extract={"checkpoint_seconds": 0, "batch_size": 4, "num_workers": 1}
    )
    run = extraction(tiny, small_disk, params)
    done = fail_and_resume(run, small_disk, monkeypatch)
    assert re.search(r"resuming after [1-9]\d* of 62 images", done.stderr), done.stderr
    assert (small_disk / "features.h5").read_bytes() == tiny.features.read_bytes()
    discard_if_complete(small_disk / "features.h5")
    assert [path.name for path in small_disk.iterdir()] == ["features.h5"]


def test_ranks_end_together_with_one_line(
    small_disk: Path, tiny: Artifacts, tmp_path: Path
) -> None:
    params = write_params(tmp_path / "p.yaml", distributed={"timeout": 5.0})
    world = World(training(tiny, small_disk, params), 2, tmp_path / "ranks")
    assert world.join() == [1, 1], world.printed()
    (said,) = world.errors()
    assert said.startswith("error: no space left on the disk")


def test_workers_of_ray_that_find_a_full_disk_can_go_on_later(
    small_disk: Path, tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    params = write_params(
        tmp_path / "p.yaml",
        extract={"batch_size": 4, "checkpoint_seconds": 0},
        distributed={"engine": "ray", "workers": 1},
    )
    run = extraction(tiny, small_disk, params)
    done = fail_and_resume(run, small_disk, monkeypatch)
    assert done.returncode == 0, done.stderr
    assert (small_disk / "features.h5").read_bytes() == tiny.features.read_bytes()


def test_download(small_disk: Path, world: Artifacts, tmp_path: Path) -> None:
    source = {"images": str(world.images), "images_md5": None}
    result = command(
        *("download", "--images", small_disk / "i.zip", "--text", small_disk / "t.zip"),
        *("--params", write_params(tmp_path / "params.yaml", download=source)),
    )
    assert "no space left on the disk" in one_line(result)
    assert list(small_disk.iterdir()) == []
