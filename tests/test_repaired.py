"""An extraction resumes after images were repaired, removed or added."""

import logging
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipeline.config.load import load_params
from pipeline.config.schema import ExtractConfig
from pipeline.images.archive import ImageArchive
from pipeline.runtime.errors import InputError
from pipeline.stages.extract import extract
from tests.conftest import Artifacts, make_zip, write_params


def archive_of(tiny: Artifacts, path: Path, **changed: bytes | None) -> Path:
    """Write a zip of sixteen images; `changed` replaces some, or removes them with None."""
    with ImageArchive(tiny.images) as archive:
        images = {f"p{n:02}": archive.read(image_id) for n, image_id in enumerate(archive.ids[:16])}
    members = {**images, **changed}
    return make_zip(
        path, {f"{name}.jpg": image for name, image in members.items() if image is not None}
    )


@pytest.mark.parametrize(
    ("finished", "changed", "kept"),
    [
        (False, {"p11": "another"}, 8),  # whole batches of 4
        (False, {"p11": None, "p16 is longer than the others": "another"}, 8),
        (False, {"a": "another", "p11": None}, 0),
        (True, {"p05": "another", "p11": None}, 4),
        (True, {"p16": "another"}, 16),
    ],
    ids=str,
)
def test_an_extraction_resumes_before_the_first_changed_image(
    tiny: Artifacts,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    finished: bool,
    changed: dict[str, str | None],
    kept: int,
) -> None:
    """Repairing or removing a bad image costs only the features after it."""
    caplog.set_level(logging.INFO)
    config = load_params(
        write_params(tmp_path / "params.yaml", extract={"batch_size": 4}), ExtractConfig
    )
    with ImageArchive(tiny.images) as archive:
        another = archive.read(archive.ids[-1])
    out, bad = tmp_path / "features.h5", {} if finished else {"p11": b"no image"}
    before = archive_of(tiny, tmp_path / "before.zip", **bad)
    error = pytest.raises(InputError, match=r"p11\.jpg in .* is not an image")
    with nullcontext() if finished else error:
        extract(before, tiny.unreadable, tiny.backbone, out, config)
    cached = out.read_bytes() if finished else b""
    if finished:  # another link of the same file, as in DVC's cache
        (tmp_path / "cache").hardlink_to(out)
    repaired = {name: one and another for name, one in changed.items()}
    after = archive_of(tiny, tmp_path / "after.zip", **repaired)
    extract(after, tiny.unreadable, tiny.backbone, out, config)
    assert re.search(rf"the images have changed: reusing {kept} of \d+ rows", caplog.text)
    extract(after, tiny.unreadable, tiny.backbone, tmp_path / "fresh.h5", config)
    assert out.read_bytes() == (tmp_path / "fresh.h5").read_bytes()
    assert not finished or (tmp_path / "cache").read_bytes() == cached
