"""A small real data set and its artifacts, made once by the stages themselves."""

import hashlib
import io
import logging
import subprocess
import sys
import zipfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.captions.table import read_info, write_info
from pipeline.cli import main
from pipeline.config.load import load_params
from pipeline.config.schema import (
    BackboneConfig,
    EvaluateConfig,
    ExtractConfig,
    PrepareConfig,
    ScstConfig,
    TrainConfig,
    VocabConfig,
)
from pipeline.demo.archives import write_archives
from pipeline.images.unreadable import write_unreadable
from pipeline.runtime.device import use_reproducible_products
from pipeline.stages.backbone import make_backbone
from pipeline.stages.calibrate import calibrate
from pipeline.stages.evaluate import evaluate
from pipeline.stages.extract import extract
from pipeline.stages.neighbors import make_neighbors
from pipeline.stages.prepare import prepare
from pipeline.stages.scst import scst
from pipeline.stages.train import train
from pipeline.stages.vocab import make_vocabulary

use_reproducible_products()  # has to come before the first product of any test

ROOT = Path(__file__).resolve().parent.parent
SHAPES = ROOT / "pipeline/demo/shapes.safetensors"
SHARED = ROOT.parent / "shared"

# Files that take a minute and more, most of it in processes that tests start.
LONG = ("test_repro.py", "test_demo.py", "test_experiments.py", "test_ci.py")

# Small enough for seconds, and different from the real job by params alone. The recipe is another,
# of few steps: the committed one averages over hundreds.
TINY: dict[str, dict[str, Any]] = {
    "backbone": {"name": "shufflenet_v2_x0_5", "weights": str(SHAPES)},
    "extract": {"layer": "pooled", "crop_mode": "squash", "image_size": 64, "device": "cpu"},
    "vocab": {"min_count": 1},
    "train": {
        "decoder": "show_and_tell",
        "embed_size": 16,
        "hidden_size": 24,
        "dropout": 0.3,
        "word_dropout": 0.0,
        "feature_noise": 0.0,
        "epochs": 2,
        "min_epoch_steps": 1,
        "batch_size": 16,
        "learning_rate": 0.01,
        "ema_decay": 0.0,
        "device": "cpu",
    },
    "scst": {"epochs": 0, "bleu_weight": 0.0, "device": "cpu"},
    "evaluate": {"beam_size": 2, "max_length": 12, "device": "cpu"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: begun last, one would keep a single worker busy while the other waits."""
    items.sort(key=lambda item: item.path.name not in LONG)


def params(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The committed params, made tiny, with these groups' keys changed."""
    groups = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for source in (TINY, changes):
        for group, values in source.items():
            groups[group].update(values)
    return groups


def write_params(path: Path, **changes: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(params(**changes)), encoding="utf-8")
    return path


def make_zip(path: Path, members: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def showtell(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def command(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has spent the seconds on its imports already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv, sys.argv = sys.argv, ["showtell", *map(str, arguments)]
    handlers, logging.root.handlers = logging.root.handlers, []  # the command sets up its own
    try:
        with chdir(cwd), redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv, logging.root.handlers = argv, handlers
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The single line that a failed command must end with; there is never a traceback."""
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), result.stderr
    return last


@dataclass(frozen=True)
class Artifacts:
    """Where everything of a finished tiny run is."""

    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "data/images.zip"

    @property
    def text(self) -> Path:
        return self.folder / "data/text.zip"

    @property
    def unreadable(self) -> Path:
        return self.folder / "data/unreadable_images.csv"

    @property
    def excluded(self) -> Path:
        return self.folder / "data/excluded.csv"

    @property
    def table(self) -> Path:
        return self.folder / "data/captions.csv"

    @property
    def vocabulary(self) -> Path:
        return self.folder / "data/vocabulary.json"

    @property
    def backbone(self) -> Path:
        return self.folder / "models/backbone.safetensors"

    @property
    def features(self) -> Path:
        return self.folder / "features/features.h5"

    @property
    def model(self) -> Path:
        return self.folder / "models/captioner.safetensors"

    @property
    def confidence(self) -> Path:
        return self.folder / "models/confidence.json"

    @property
    def neighbors(self) -> Path:
        return self.folder / "models/neighbors.safetensors"

    @property
    def trained(self) -> Path:
        return self.folder / "models/trained.safetensors"

    @property
    def history(self) -> Path:
        return self.folder / "reports/history.csv"

    @property
    def reports(self) -> Path:
        return self.folder / "reports"

    @property
    def params(self) -> Path:
        return self.folder / "params.yaml"

    def with_table(self, folder: Path, text: str) -> Path:
        """Another captions table, with an info file that vouches for it."""
        table = folder / "captions.csv"
        table.write_text(text, encoding="utf-8")
        digest = hashlib.sha256(table.read_bytes()).hexdigest()[:16]
        write_info(table, replace(read_info(self.table), table_digest=digest))
        return table

    def evaluate(
        self,
        config: EvaluateConfig,
        out_dir: Path,
        model: Path | None = None,
        features: Path | None = None,
        table: Path | None = None,
    ) -> None:
        """Evaluate into the folder `out_dir`, with these inputs in the place of its own."""
        inputs = (self.confidence, features or self.features, table or self.table)
        evaluate([model or self.model], *inputs, self.neighbors, out_dir, config)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def tiny(world: Artifacts) -> Artifacts:
    return make_tiny(world)


def make_world(folder: Path, seed: int = 1) -> Artifacts:
    """The two archives of a little world, in Flickr8k's layout."""
    made = Artifacts(folder)
    counts = {"train": 40, "val": 10, "test": 12}
    write_archives(made.images, made.text, counts, seed)
    write_params(made.params, download={"images": str(made.images), "text": str(made.text)})
    return made


def make_tiny(world: Artifacts) -> Artifacts:
    """All artifacts of the little world, from the stages themselves."""
    write_unreadable(world.unreadable, {})
    prepare(
        world.text,
        world.images,
        world.unreadable,
        world.table,
        world.excluded,
        load_params(world.params, PrepareConfig),
    )
    make_backbone(world.backbone, load_params(world.params, BackboneConfig))
    images = (world.images, world.unreadable, world.backbone)
    extract(*images, world.features, load_params(world.params, ExtractConfig))
    make_vocabulary(world.table, world.vocabulary, load_params(world.params, VocabConfig))
    inputs, outs = (world.features, world.table), (world.trained, world.history)
    train(*inputs, world.vocabulary, *outs, load_params(world.params, TrainConfig))
    outs = (world.model, world.reports / "scst.csv")
    scst(world.trained, *inputs, *outs, load_params(world.params, ScstConfig))
    config = load_params(world.params, EvaluateConfig)
    make_neighbors(*inputs, world.vocabulary, world.neighbors)
    calibrate([world.model], *inputs, world.neighbors, world.confidence, config)
    world.evaluate(config, world.reports)
    return world
