"""`showtell caption` on the images of the test split."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.conftest import Artifacts


@pytest.fixture
def photos(tiny: Artifacts, tmp_path: Path) -> Path:
    """The test images as files in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    ids = {one["image_id"] for one in json.loads((tiny.reports / "captions.json").read_text())}
    with zipfile.ZipFile(tiny.images) as archive:
        for member in archive.namelist():
            if Path(member).name in ids:
                (folder / Path(member).name).write_bytes(archive.read(member))
    return folder


def caption(tiny: Artifacts, *arguments: object) -> list[object]:
    return ["caption", *arguments, "--model", tiny.model, "--backbone", tiny.backbone]
