"""A zip's directory is read as zipfile reads it, and what is unusual is left to zipfile."""

import random
import struct
import zipfile
from pathlib import Path

import pytest

from pipeline.images import zip_directory
from pipeline.images.zip_directory import FIELDS, read_directory
from pipeline.runtime.errors import InputError


def write(path: Path, comment: bytes = b"", large: bool = False) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = comment
        for name in ("a.jpg", "b/c.png", "é.jpg", "folder/"):
            archive.writestr(name, name * 50, zipfile.ZIP_DEFLATED)
        with archive.open("large.jpg", "w", force_zip64=large) as file:
            file.write(b"content")
    return path


def assert_same(path: Path) -> None:
    """As zipfile: the same members, or an error in both."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error):
        with pytest.raises(InputError):
            read_directory(path)
        return
    directory = read_directory(path)
    assert directory.names == [member.orig_filename for member in members]
    expected = [[getattr(member, field) for field in FIELDS] for member in members]
    assert directory.fields.tolist() == expected


@pytest.mark.parametrize("comment", [b"", b"a comment"])
@pytest.mark.parametrize("before", [b"", b"a program that unpacks itself"])
def test_it_is_what_zipfile_reads(tmp_path: Path, comment: bytes, before: bytes) -> None:
    path = write(tmp_path / "a.zip", comment, large=True)
    path.write_bytes(before + path.read_bytes())
    assert_same(path)
    # Without either, zipfile is not needed.
    assert (zip_directory._read_plain(path) is None) == bool(comment or before)


def test_so_are_zips_of_more_than_65535_members_and_of_more_than_4_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 60)  # sizes and offsets above go to ZIP64's fields
    path = write(tmp_path / "a.zip")
    monkeypatch.undo()
    assert_same(path)
    assert zip_directory._read_plain(path)


def test_damage_is_found_as_zipfile_finds_it(tmp_path: Path) -> None:
    rng, content = random.Random(0), write(tmp_path / "a.zip").read_bytes()
    path = tmp_path / "damaged.zip"
    start = content.index(b"PK\1\2")
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(start, len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged if rng.random() < 0.8 else damaged[: rng.randrange(len(damaged))])
        assert_same(path)
