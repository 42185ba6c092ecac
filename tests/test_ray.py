"""Extraction by the workers of a real Ray cluster: the same bytes, whoever dies on the way."""

import logging
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import load_params
from pipeline.config.schema import DistributedConfig, ExtractConfig
from pipeline.extraction import ray_extractor
from pipeline.extraction.feature_writer import FeatureWriter
from pipeline.extraction.shared_files import SharedFiles
from pipeline.extraction.worker import ExtractInputs, ExtractionWorker
from pipeline.runtime.errors import InputError
from pipeline.stages.extract import extract
from tests.conftest import Artifacts, write_params

pytest.importorskip("ray")


def extraction(
    tiny: Artifacts,
    out: Path,
    engine: str = "ray",
    backbone: Path | None = None,
    **distributed: Any,
) -> bytes:
    changes = {"extract": {"batch_size": 4}, "distributed": {"engine": engine, **distributed}}
    params = write_params(out.parent / "p.yaml", **changes)
    configs = (load_params(params, ExtractConfig), load_params(params, DistributedConfig))
    extract(tiny.images, tiny.unreadable, backbone or tiny.backbone, out, *configs)
    return out.read_bytes()


def test_workers_that_die_cost_their_blocks_alone(
    tiny: Artifacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two workers write to the one file; both are killed after the first block."""
    caplog.set_level(logging.INFO)
    expected = extraction(tiny, tmp_path / "local.h5", engine="local")
    monkeypatch.setattr(ray_extractor, "BLOCK_BATCHES", 1)
    append, values = FeatureWriter.append_checked, []

    def kill_after_the_first(writer: FeatureWriter, rows: Any, checksums: Any) -> None:
        values.append(rows)
        append(writer, rows, checksums)
        if len(values) == 1:
            for pid in re.findall(r"ready on \S+ \(process (\d+)\)", caplog.text):
                os.kill(int(pid), signal.SIGKILL)

    monkeypatch.setattr(FeatureWriter, "append_checked", kill_after_the_first)
    assert extraction(tiny, tmp_path / "f.h5", workers=2) == expected
    assert len(values) == 16
    assert values == [None] * 16  # the workers wrote them
    assert "died; others extract its blocks" in caplog.text


def test_workers_without_the_file_system_send_their_rows(
    tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = extraction(tiny, tmp_path / "local.h5", engine="local")
    of = SharedFiles.of
    monkeypatch.setattr(SharedFiles, "of", lambda _: of([]))
    assert extraction(tiny, tmp_path / "f.h5", workers=1) == expected


def test_they_make_the_shards_of_one_process(tiny: Artifacts, tmp_path: Path) -> None:
    made = []
    for engine in ("local", "ray"):
        params = write_params(
            tmp_path / f"{engine}.yaml",
            extract={"batch_size": 4, "shard_rows": 25},
            distributed={"engine": engine, "workers": 1},
        )
        configs = (load_params(params, ExtractConfig), load_params(params, DistributedConfig))
        out = tmp_path / engine / "features.h5"
        extract(tiny.images, tiny.unreadable, tiny.backbone, out, *configs)
        made.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert made[0] == made[1]
    assert len(made[0]) == 4  # three shards and the index


def test_what_a_worker_cannot_use_is_one_line(tiny: Artifacts, tmp_path: Path) -> None:
    broken = tmp_path / "backbone.safetensors"
    broken.write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"backbone.safetensors .* \(on \S+\)$"):
        extraction(tiny, tmp_path / "f.h5", workers=1, backbone=broken)


def test_a_worker_with_other_packages_is_refused(tiny: Artifacts) -> None:
    inputs = ExtractInputs(tiny.images, tiny.unreadable, tiny.backbone)
    config = load_params(tiny.params, ExtractConfig)
    with inputs.open_archive() as archive:
        plan = ExtractionWorker(archive, tiny.backbone, config).plan
        ExtractionWorker(archive, tiny.backbone, config, plan)
        other = replace(plan, package_versions=("torch 1.0",))
        with pytest.raises(InputError, match="this machine's package versions is "):
            ExtractionWorker(archive, tiny.backbone, config, other)


def test_no_cluster_is_one_line(tiny: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no Ray cluster at 127.0.0.1:9 \(.*refused"):
        extraction(tiny, tmp_path / "f.h5", ray_address="127.0.0.1:9")
    with pytest.raises(InputError, match="must be HOST:PORT"):
        extraction(tiny, tmp_path / "f.h5", ray_address="ray://somewhere")
