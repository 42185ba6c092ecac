"""A few of the kills that `make kills` does by the dozen."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.campaigns.kills import AFTER, finish, jobs, kill, leftovers, reference
from tests.conftest import Artifacts

STAGES = ("download", "extract", "train", "scst", "calibrate", "evaluate")


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments_a_stage_ends_with_the_same_bytes(
    tiny: Artifacts, tmp_path: Path, stage: str
) -> None:
    rng = random.Random(stage)
    with jobs(tiny, tmp_path) as all_jobs:
        (job,) = (one for one in all_jobs if one.name == stage)
        whole = reference(job, tmp_path / "whole")
        done: Counter[str] = Counter()
        for number in range(20):
            folder = tmp_path / str(number)
            faults = kill(job, folder, whole, rng)
            done.update(faults)
            if faults:
                assert finish(job, folder) == whole.made, faults
                assert not leftovers(job, folder)
            if done.total() - done[AFTER] >= 3:
                return
    pytest.fail("hardly a kill came in time")
