"""The benchmarks run and print what they promise; how fast is not for a test to say."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    archive,
    captioning,
    edges,
    extraction,
    gpu,
    gpu_extraction,
    gpu_run,
    scale,
    search,
    serving,
    training,
)
from benchmarks.timing import Row, gemm_flops, interleaved
from pipeline.captions.table import read_info
from pipeline.config.load import load_params
from pipeline.config.schema import ScstConfig, TrainConfig
from tests.conftest import Artifacts, command, write_params
from tests.helpers import serving as served

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    for module, sizes in (
        (training, {"IMAGES": {"pooled": 30, "grid": 6}, "VECTOR": (16,), "GRID": (2, 2, 16)}),
        (search, {"IMAGES": 20, "ALONE": 2, "BATCH": 10, "VECTOR": (16,), "GRID": (2, 2, 16)}),
        (
            extraction,
            {"BACKBONES": ("shufflenet_v2_x0_5", "timm/mobilenetv3_small_050"), "SECONDS": 0.1},
        ),
    ):
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value)
    # The compiler is only a reference, and takes half a minute.
    monkeypatch.setattr(extraction, "compiled", lambda *a: None)
    return load_params(write_params(tmp_path / "params.yaml"), TrainConfig)


def run_stage(folder: Path, *arguments: str) -> float:
    result = command(*arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    return 1.0


def table(rows: Any) -> dict[tuple[str, str], Row]:
    made = {(row.what, row.baseline): row for row in rows}
    assert all(row.rate > 0 and row.ratio > 0 for row in made.values())
    return made


def test_training_stands_beside_the_bare_loop_and_the_tutorials(config: TrainConfig) -> None:
    made = table(training.rows(config, CPU, torch.float32, repeats=1))
    assert set(made) == {
        ("training, show_and_tell", "bare loop"),
        ("training, show_and_tell", "tutorial"),
        ("training, show_and_tell", "arithmetic limit"),
        ("training, spatial_attention", "bare loop"),
        ("training, spatial_attention", "tutorial"),
        ("training, top_down_attention", "bare loop"),
        ("training, top_down_attention", "peer"),
    }


def test_search_stands_beside_one_image_at_a_time(config: TrainConfig) -> None:
    made = table(search.rows(config, CPU, repeats=1))
    searches = {"search, beam 5", "search, beam 5, top_down_attention"}
    assert {what for what, _ in made} == {*searches, "scoring 20 images"}


def test_the_captioner_stands_beside_the_cnn_and_the_search(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioning, "PHOTOS", 8)
    monkeypatch.setattr(captioning, "SINGLE", 4)
    made = table(captioning.rows(config, CPU, repeats=1))
    assert set(made) == {
        ("captions of photos", "CNN, then search"),
        ("one warm caption", "150 ms"),
    }


def test_extraction_stands_beside_the_cnn_alone(config: TrainConfig) -> None:
    made = table(extraction.rows(None, None, CPU, torch.float32, repeats=1))
    assert ("extraction, shufflenet_v2_x0_5", "fastest CNN alone") in made
    assert ("extraction, mobilenet_v2, photos", "CNN alone or decoding") in made


def test_a_gpus_table_is_made_on_a_cpu_with_small_numbers(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that its minutes on a GPU are spent on the GPU."""
    for module, sizes in (
        (gpu, {"FLICKR8K": gpu.Size(12, 60, 1), "COCO": gpu.Size(24, 60, 1)}),
        (gpu, {"VECTOR": (8,), "GRID": (2, 2, 8), "SMALL_GRID": (2, 2, 8), "SEARCHED": 4}),
        (gpu_run, {"COUNTS": {"train": 12, "val": 3, "test": 3}, "GRID": (2, 2, 8)}),
        (gpu_extraction, {"COUNT": 8, "MODELS": (("shufflenet_v2_x0_5", None),), "PASSES": 1}),
    ):
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value)
    # In this process, which has spent the seconds on its imports already.
    monkeypatch.setattr(
        gpu_run, "_run", lambda at, stage, options: run_stage(at, stage, *options.split())
    )
    layer = {"layer": "grid"}
    sizes = {"embed_size": 16, "hidden_size": 16, "decoder": "spatial_attention", "epochs": 1}
    path = write_params(
        tmp_path / "params.yaml", extract=layer, train=sizes, scst={"epochs": 1, "batch_size": 6}
    )
    bench = gpu.Bench(CPU, load_params(path, TrainConfig), load_params(path, ScstConfig), tmp_path)
    made = table(
        [
            *bench.training(),
            *bench.coco(),
            *bench.reinforce(),
            *bench.search(),
            *gpu_extraction.rows(CPU, tmp_path, compiled=False),
            *gpu_run.rows(CPU, tmp_path, path),
        ]
    )
    assert ("spatial attention 10 x 10, Flickr8k, tokens", "tutorial") in made
    assert ("default run after extraction", "90 s") in made
    assert (tmp_path / "scst.txt").exists()


def test_the_edges_are_measured_whatever_python_the_shell_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`make bench` runs the environment's Python, and leaves PATH as it is."""
    monkeypatch.setenv("PATH", os.defpath)
    help_, repro = edges.rows(repeats=1)
    assert (help_.baseline, repro.baseline) == ("0.5 s", "trivial pipeline")


def test_a_large_zip_stands_beside_zipfile(capsys: pytest.CaptureFixture[str]) -> None:
    archive.measure(images=2000)
    _, _, ours, theirs = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\| ImageArchive \| \d+\.\d \| 0\.\d\d \|", ours)
    assert re.fullmatch(r"\| zipfile \| \d+\.\d \| 0\.\d\d \|", theirs)


def test_a_made_up_coco_goes_through_prepare(tmp_path: Path) -> None:
    scale.write_coco(tmp_path, 100)
    write_params(
        tmp_path / "params.yaml",
        download={"images": "coco.zip", "images_md5": None, "text": "dataset_coco.json"}
        | {"text_md5": None},
    )
    for stage in ("download", "prepare"):
        seconds, memory = scale.run([stage], tmp_path)
        assert seconds > 0
        assert 0 < memory < 2
    info = read_info(tmp_path / "data/captions.csv")
    assert info.images == {"train": 80, "val": 10, "test": 10}


def test_the_server_stands_beside_the_library(
    tiny: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CLIENTS", (1, 2))
    photos, notes = serving.made_up_photos(4), list[str]()
    captioner = served.captioner_of(tiny)
    with served.serving(captioner, tiny.folder) as running:
        server = serving.Server(running.port, os.getpid())
        made = table(serving.rows(captioner, server, photos, 4, 1, notes.append))
        assert {what for what, _ in made} == {"served, 1 clients", "served, 2 clients"}
        assert "p99" in notes[0]
        assert serving.memory_row(server, photos, captioner, 20).rate > 0
        mixed_up = list(captioner.stream(photos[1:] + photos[:1]))
        with pytest.raises(RuntimeError, match="not this photo's answer"):
            serving.ask(server, photos, mixed_up, 2, 4)


def test_rounds_are_interleaved_and_the_first_only_warms_up() -> None:
    turns: list[str] = []

    def work(name: str, units: int) -> Any:
        return lambda: turns.append(name) or units

    rates = interleaved({"a": work("a", 1), "b": work("b", 1)}, repeats=2)
    assert turns == ["a", "b"] * 3
    assert set(rates) == {"a", "b"}


def test_a_row_reads_as_a_line_of_the_table() -> None:
    row = Row("search", 1234.5, "captions/s", "one at a time", 11.59, "10")
    assert row.markdown() == "| search | 1,234 captions/s | 11.59 x one at a time | 10 |"


def test_the_arithmetic_limit_is_measured() -> None:
    assert gemm_flops(CPU, torch.float32, size=64) > 1e6
