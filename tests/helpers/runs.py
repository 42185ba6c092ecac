"""A repository with the reports of invented runs, for `showtell compare`."""

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.evaluation.diversity import diversity_stats
from pipeline.evaluation.metrics_file import write_metrics
from pipeline.evaluation.reports import ReportFiles, write_captions, write_references, write_scores
from pipeline.metrics.bleu import COUNT_NAMES
from pipeline.metrics.registry import SCORE_NAMES
from pipeline.metrics.scores import bleu_counts, cider, compute_scores, rouge_l
from tests.conftest import ROOT, command, params
from tests.helpers.reports import meta

WORDS = "a man cat runs red ball on the grass in water two children play with snow".split()
FILES = ("captions.json", "metrics.json", "references.json", "scores.csv")

BOTH_RULES = ("--fail-on", "tolerance", "--fail-on", "noise")


class Runs:
    """A git and DVC repository with a revision for each run that a test commits."""

    def __init__(self, folder: Path, images: int = 60, top: Path | None = None) -> None:
        """Create the repository.

        Args:
            top: git's root, if it is above the project.
        """
        self.folder = folder
        (folder / "reports").mkdir(parents=True)
        (folder / ".dvc").mkdir()
        shutil.copyfile(ROOT / ".dvc/config", folder / ".dvc/config")
        shutil.copyfile(ROOT / "dvc.yaml", folder / "dvc.yaml")
        self.git("init", "--quiet", str(top or folder))
        rng = random.Random(0)
        self.ids = [f"{number:03}.jpg" for number in range(images)]
        self.references = [
            [[*rng.sample(WORDS, k=rng.randint(5, 8)), "dog"] for _ in range(5)] for _ in self.ids
        ]

    def git(self, *arguments: str) -> str:
        user = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        done = subprocess.run(
            ("git", *user, *arguments), cwd=self.folder, check=True, capture_output=True, text=True
        )
        return done.stdout

    def captions(self, wrong: float, seed: int = 0) -> list[list[str]]:
        """Return a reference per image, with this fraction of its words wrong."""
        rng = random.Random(seed)
        return [
            [
                f"wrong{position}" if rng.random() < wrong and word != "dog" else word
                for position, word in enumerate(refs[0])
            ]
            for refs in self.references
        ]

    def write(
        self,
        captions: Sequence[Sequence[str]],
        change: Callable[[dict[str, Any]], object] = lambda metrics: None,
        **changed: dict[str, Any],
    ) -> None:
        """Write the reports of these captions to the workspace, with params.yaml and dvc.lock.

        Args:
            change: edits the content of metrics.json.
            changed: params that differ from the tiny run's.
        """
        out = ReportFiles.in_folder(self.folder / "reports")
        write_captions(out.captions, self.ids, captions)
        write_references(out.references, self.ids, self.references)
        counts = bleu_counts(captions, self.references).T
        columns: dict[str, Any] = {
            "image_id": self.ids,
            "cider": cider(captions, self.references)[1],
            "rouge_l": rouge_l(captions, self.references)[1],
            **dict(zip(COUNT_NAMES, counts, strict=True)),
        }
        write_scores(out.scores, columns)
        metrics: dict[str, Any] = {
            **compute_scores(captions, self.references),
            **diversity_stats(captions, self.references),
            "split": "test (official)",
            "baselines": [{"name": "constant", **dict.fromkeys(SCORE_NAMES, 4.5)}],
            "meta": [meta(len(self.ids))],
        }
        change(metrics)
        write_metrics(out.metrics, metrics, reports=[out.captions, out.references, out.scores])
        self.write_params(**changed)
        self.lock()

    def write_params(self, **changed: dict[str, Any]) -> None:
        text = yaml.safe_dump(params(**changed), sort_keys=False)
        (self.folder / "params.yaml").write_text(text)

    def lock(self) -> None:
        """Write dvc.lock as `dvc repro` would, as far as a comparison reads it."""
        groups = yaml.safe_load((self.folder / "params.yaml").read_text())
        groups.pop("compare")
        groups.pop("report")
        outs = [
            {
                "path": f"reports/{name}",
                "md5": hashlib.md5((self.folder / "reports" / name).read_bytes()).hexdigest(),
            }
            for name in FILES
        ]
        stages = {
            "evaluate": {"params": {"params.yaml": groups}, "outs": outs},
            "report": {"params": {"params.yaml": params()}},  # of an older page
        }
        (self.folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))

    def commit(self, tag: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", tag)
        self.git("tag", tag)

    def restore(self) -> None:
        """Undo all changes in the workspace."""
        self.git("checkout", "--quiet", ".")

    def compare(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return command("compare", *arguments, cwd=self.folder)

    def json(self, *arguments: str) -> dict[str, Any]:
        done = self.compare(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


def metric_of(comparison: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the row of a metric in the JSON of a comparison."""
    (row,) = (row for row in comparison["metrics"] if row["metric"] == name)
    return dict(row)


def history_of_runs(folder: Path) -> Runs:
    """Return runs with the tags `base`; `good` and `bad`, clearly better and worse; and `other`, as
    good with other words."""
    runs = Runs(folder)
    runs.write(runs.captions(wrong=0.4))
    runs.commit("base")
    runs.write(runs.captions(wrong=0.15), train={"rnn_type": "gru"})
    runs.commit("good")
    runs.write(runs.captions(wrong=0.7))
    runs.commit("bad")
    runs.write(runs.captions(wrong=0.4, seed=1))
    runs.commit("other")
    return runs
