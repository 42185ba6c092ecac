"""What one machine has made, another gets from a DVC remote and uses without computing it again."""

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from moto.server import ThreadedMotoServer

import showtell
from pipeline.commands import caption
from pipeline.config.load import load_params
from pipeline.config.schema import ExtractConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.images.archive import ImageArchive
from pipeline.stages.extract import extract
from tests.conftest import Artifacts
from tests.helpers.repository import OUTS, Checkout, Repository


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Nobody's credentials, nobody's settings, and no way out: loopback alone is reachable."""
    home = tmp_path_factory.mktemp("home")
    (home / "nothing").touch()
    nowhere = "http://127.0.0.1:9"  # "discard": nothing listens there
    return {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_SESSION_TOKEN": "",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(home / "nothing"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "nothing"),
        "AWS_EC2_METADATA_DISABLED": "true",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), nowhere),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
    }


@pytest.fixture(scope="module")
def repository(
    tmp_path_factory: pytest.TempPathFactory, tiny: Artifacts, variables: dict[str, str]
) -> Repository:
    made = Repository(tmp_path_factory.mktemp("remotes") / "repository", tiny, variables)
    made.take_over(tiny)
    return made


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an S3 server on loopback which has the bucket `showtell`."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{host}:{port}/showtell", method="PUT"), timeout=30
        ):
            yield f"http://{host}:{port}"
    finally:
        server.stop()


@dataclass
class Remote:
    """A remote by the name that the repository knows it by, and how to count what it holds."""

    name: str
    folder: Path | None = None
    address: str | None = None

    def objects(self) -> int:
        if self.folder:
            return sum(path.is_file() for path in self.folder.rglob("*"))
        with urllib.request.urlopen(f"{self.address}/showtell?list-type=2", timeout=30) as listing:
            return listing.read().count(b"<Key>")


@pytest.fixture(scope="module", params=["directory", "s3"])
def remote(
    request: pytest.FixtureRequest,
    repository: Repository,
    tmp_path_factory: pytest.TempPathFactory,
) -> Remote:
    """The commands of docs/experiments.md, committed, so that a clone knows the remote too."""
    if request.param == "directory":
        folder = tmp_path_factory.mktemp("store")
        repository.run("dvc", "remote", "add", "--default", "directory", str(folder))
        made = Remote("directory", folder=folder)
    else:
        address = request.getfixturevalue("bucket")
        repository.run("dvc", "remote", "add", "--default", "s3", "s3://showtell/store")
        repository.run("dvc", "remote", "modify", "s3", "endpointurl", address)
        made = Remote("s3", address=address)
    repository.commit()
    return made


@pytest.fixture(scope="module")
def clone(
    repository: Repository, remote: Remote, tmp_path_factory: pytest.TempPathFactory
) -> Checkout:
    """A fresh clone that has pulled what the repository pushed."""
    repository.run("dvc", "push")
    # The trained model passed through `scst`: one object for both.
    assert remote.objects() == len({"data/images.zip", "data/text.zip", *OUTS}) - 1
    made = repository.clone(tmp_path_factory.mktemp("clone") / "repository")
    assert not (made.folder / "features/features.h5").exists()
    made.run("dvc", "pull")
    return made


def test_a_fresh_clone_has_nothing_to_compute_once_it_has_pulled(clone: Checkout) -> None:
    assert "Data and pipelines are up to date." in clone.run("dvc", "repro")
    assert clone.run("git", "status", "--porcelain") == ""


@pytest.mark.parametrize("remote", ["directory"], indirect=True)
def test_it_captions_an_image(
    clone: Checkout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ImageArchive(clone.folder / "data/images.zip") as archive:
        image = tmp_path / archive.ids[0]
        image.write_bytes(archive.read(archive.ids[0]))
    monkeypatch.chdir(clone.folder)  # `showtell caption` looks for model and weights here
    caption.main([str(image)])
    assert re.fullmatch(rf"{image}\t\w+( \w+)*\t0\.\d\d\n", capsys.readouterr().out)


@pytest.mark.parametrize("remote", ["directory"], indirect=True)
def test_a_released_model_is_fetched_by_its_version_and_captions(
    repository: Repository, clone: Checkout, tmp_path: Path
) -> None:
    person = ("-c", "user.name=Someone", "-c", "user.email=someone@example.org")
    repository.run("git", *person, "tag", "-a", "captioner@v1.0.0", "-m", "first release")
    fetched = tmp_path / "fetched"
    get = ("dvc", "artifacts", "get", str(repository.folder), "captioner", "--rev", "v1.0.0")
    clone.run(*get, "--out", str(fetched))
    ours, theirs = (showtell.load(path) for path in (clone.folder / "models", fetched))
    image = np.zeros((60, 80, 3), np.uint8)
    assert ours.caption(image).text == theirs.caption(image).text
    assert theirs.confidence


@pytest.mark.parametrize("remote", ["s3"], indirect=True)
def test_shards_of_features_travel_one_by_one(
    repository: Repository, remote: Remote, tiny: Artifacts, tmp_path: Path
) -> None:
    out = repository.folder / "features/features.h5"
    whole = read_features(tiny.features)
    config = load_params(tiny.params, ExtractConfig).model_copy(update={"shard_rows": 25})
    out.unlink()
    extract(tiny.images, tiny.unreadable, tiny.backbone, out, config)
    repository.run("dvc", "commit", "--force", "extract")
    repository.commit()
    before = remote.objects()
    repository.run("dvc", "push")
    # Three shards, the index, and the folder's list of them.
    assert remote.objects() == before + 5
    fetched = repository.clone(tmp_path / "clone")
    names = [f"features/features.h5/{name}" for name in ("index.h5", "00001.h5")]
    fetched.run("dvc", "pull", *names)
    folder = fetched.folder / "features/features.h5"
    assert sorted(path.name for path in folder.iterdir()) == ["00001.h5", "index.h5"]
    rows = np.arange(25, 50)
    expected = whole.read_verified(rows)
    np.testing.assert_array_equal(read_features(folder).read_verified(rows), expected)
