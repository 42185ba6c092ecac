"""A repository with the reports of made-up runs, which is what `showtell compare` reads."""

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
from pipeline.evaluation.reports import (
    write_captions,
    write_metrics,
    write_references,
    write_scores,
)
from pipeline.metrics.scores import bleu_counts, cider, compute_scores, rouge_l
from tests.conftest import ROOT, command, params

WORDS = "a man cat runs red ball on the grass in water two children play with snow".split()
FILES = ("metrics.json", "scores.csv", "captions.json", "references.json")


# All that the gate can be asked for.
BOTH = ("--fail-on", "tolerance", "--fail-on", "noise")


class Runs:
    """Git, DVC's folder, and as many revisions as a test commits."""

    def __init__(self, folder: Path, images: int = 60, top: Path | None = None) -> None:
        """
        Args:
            top: git's root, where it lies above the project.
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
        who = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        done = subprocess.run(
            ("git", *who, *arguments), cwd=self.folder, check=True, capture_output=True, text=True
        )
        return done.stdout

    def captions(self, wrong: float, seed: int = 0) -> list[list[str]]:
        """A reference an image, with this share of its words wrong."""
        rng = random.Random(seed)
        return [
            [
                f"wrong{place}" if rng.random() < wrong and word != "dog" else word
                for place, word in enumerate(refs[0])
            ]
            for refs in self.references
        ]

    def write(
        self,
        captions: Sequence[Sequence[str]],
        change: Callable[[dict[str, Any]], object] = lambda metrics: None,
        **changed: dict[str, Any],
    ) -> None:
        """The reports of these captions in the workspace, params.yaml, and dvc.lock.

        Args:
            change: to what metrics.json would be.
            changed: params other than the tiny run's.
        """
        out = self.folder / "reports"
        words, closest, *matches = bleu_counts(captions, self.references).T
        write_captions(out / "captions.json", self.ids, captions)
        write_references(out / "references.json", self.ids, self.references)
        columns: dict[str, Any] = {
            "image_id": self.ids,
            "cider": cider(captions, self.references)[1],
            "rouge_l": rouge_l(captions, self.references)[1],
            "words": words,
            "closest_reference": closest,
        }
        counts = {f"matches_{n}": count for n, count in enumerate(matches, start=1)}
        write_scores(out / "scores.csv", columns | counts)
        metrics: dict[str, Any] = {
            **compute_scores(captions, self.references),
            **diversity_stats(captions),
            "split": "test (official)",
            "baselines": [{"name": "constant", "cider": 4.5}],
            "meta": [
                {
                    "scale": 100.0,
                    "tokenizer": "ptb-lower-nopunct-2",
                    "split_digest": "0123",
                    "images": len(self.ids),
                    "references": 5.0,
                }
            ],
        }
        change(metrics)
        beside = [out / name for name in ("captions.json", "references.json", "scores.csv")]
        write_metrics(out / "metrics.json", metrics, beside)
        self.write_params(**changed)
        self.lock()

    def write_params(self, **changed: dict[str, Any]) -> None:
        text = yaml.safe_dump(params(**changed), sort_keys=False)
        (self.folder / "params.yaml").write_text(text)

    def lock(self) -> None:
        """dvc.lock as `dvc repro` would leave it, as far as a comparison looks."""
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
            "report": {"params": {"params.yaml": params()}},  # of a page that was made before
        }
        (self.folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))

    def commit(self, tag: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", tag)
        self.git("tag", tag)

    def compare(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return command("compare", *arguments, cwd=self.folder)

    def json(self, *arguments: str) -> dict[str, Any]:
        done = self.compare(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


def history_of_runs(folder: Path) -> Runs:
    """Tags: `base`; `good` and `bad`, plainly better and worse; `other`, as good by other words."""
    made = Runs(folder)
    made.write(made.captions(wrong=0.4))
    made.commit("base")
    made.write(made.captions(wrong=0.15), train={"rnn_type": "gru"})
    made.commit("good")
    made.write(made.captions(wrong=0.7))
    made.commit("bad")
    made.write(made.captions(wrong=0.4, seed=1))
    made.commit("other")
    return made
