"""A few of the changed files that `make fuzz` tries by the thousand, and what it once found."""

from pathlib import Path

import pytest

from tests.campaigns.fuzz import attempt, parsers
from tests.conftest import Artifacts

NAMES = (
    *("image archive", "text archive", "captions table", "table info", "vocabulary", "params"),
    *("model", "backbone", "features"),
    *("captions.json", "references.json", "scores.csv", "metrics.json"),
)
FOUND = [  # by these seeds: what another message than one line came of
    ("model", "9 18 26"),  # a header of 2 ** 63 layers
    ("captions table", "0 14 21"),  # rows with more cells than the header
    ("captions table", "0 13 11"),
    ("metrics.json", "1 5 37"),  # `meta` is a list of texts
]


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_read_or_refused(tiny: Artifacts, tmp_path: Path, name: str) -> None:
    (parser,) = (one for one in parsers(tiny) if one.name == name)
    outcomes = {attempt(parser, f"suite {seed}", tmp_path) for seed in range(25)}
    assert "refused" in outcomes


@pytest.mark.parametrize(("name", "seed"), FOUND)
def test_what_fuzzing_found_stays_mended(
    tiny: Artifacts, tmp_path: Path, name: str, seed: str
) -> None:
    (parser,) = (one for one in parsers(tiny) if one.name == name)
    assert attempt(parser, seed, tmp_path) in ("read", "refused")
