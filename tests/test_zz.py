import time
from pathlib import Path

from pipeline.config.load import load_params
from pipeline.config.schema import DistributedConfig, ExtractConfig
from pipeline.stages.extract import extract
from tests.conftest import Artifacts, write_params


def test_ray(tiny: Artifacts, tmp_path: Path):
    p = write_params(tmp_path / "params.yaml", distributed={"engine": "ray", "workers": 2})
    t = time.time()
    extract(
        tiny.images,
        tiny.unreadable,
        tiny.backbone,
        tmp_path / "f.h5",
        load_params(p, ExtractConfig),
        load_params(p, DistributedConfig),
    )
    print(time.time() - t)
    assert (tmp_path / "f.h5").read_bytes() == tiny.features.read_bytes()
