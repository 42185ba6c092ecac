"""An extraction goes on where images were repaired, removed or added since."""

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
    """Sixteen images; None leaves one out."""
    with ImageArchive(tiny.images) as archive:
        images = {f"p{n:02}": archive.content(one) for n, one in enumerate(archive.ids[:16])}
    whole = {**images, **changed}
    return make_zip(path, {f"{name}.jpg": one for name, one in whole.items() if one is not None})


@pytest.mark.parametrize(
    ("ended", "changed", "kept"),
    [
        (False, {"p11": "another"}, 8),  # of whole batches of 4
        (False, {"p11": None, "p16 is longer than the others": "another"}, 8),
        (False, {"a": "another", "p11": None}, 0),
        (True, {"p05": "another", "p11": None}, 4),
        (True, {"p16": "another"}, 16),
    ],
    ids=str,
)
def test_an_extraction_goes_on_before_the_first_image_that_has_changed(
    tiny: Artifacts,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    ended: bool,
    changed: dict[str, str | None],
    kept: int,
) -> None:
    """A bad one that is repaired or removed costs no more than what came behind it."""
    caplog.set_level(logging.INFO)
    config = load_params(
        write_params(tmp_path / "params.yaml", extract={"batch_size": 4}), ExtractConfig
    )
    with ImageArchive(tiny.images) as archive:
        another = archive.content(archive.ids[-1])
    out, bad = tmp_path / "features.h5", {} if ended else {"p11": b"no image"}
    before = archive_of(tiny, tmp_path / "before.zip", **bad)
    with nullcontext() if ended else pytest.raises(InputError, match=r"p11\.jpg in .* is no pict"):
        extract(before, tiny.backbone, out, config)
    held = out.read_bytes() if ended else b""
    if ended:  # another name of the same file, as DVC's cache may have
        (tmp_path / "cache").hardlink_to(out)
    repaired = {name: one and another for name, one in changed.items()}
    after = archive_of(tiny, tmp_path / "after.zip", **repaired)
    extract(after, tiny.backbone, out, config)
    assert re.search(rf"other images than before: {kept} of \d+ rows are still", caplog.text)
    extract(after, tiny.backbone, tmp_path / "afresh.h5", config)
    assert out.read_bytes() == (tmp_path / "afresh.h5").read_bytes()
    assert not ended or (tmp_path / "cache").read_bytes() == held
