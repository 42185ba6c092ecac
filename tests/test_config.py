"""params.yaml: frozen, typed configs, and errors before anything starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipeline.config.load import load_params, parse_yaml
from pipeline.config.renamed import RENAMED
from pipeline.config.schema import GROUPS, CompareConfig, ExtractConfig, TrainConfig
from pipeline.decoders.registry import DECODERS
from pipeline.metrics.registry import METRICS
from pipeline.runtime.errors import InputError
from tests.conftest import ROOT, one_line, params, showtell, write_params


def test_committed_params_are_valid_and_frozen() -> None:
    config = load_params(ROOT / "params.yaml", TrainConfig)
    assert config.rnn_type == "lstm"
    with pytest.raises(ValidationError):
        config.rnn_type = "gru"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"droput": 0.1}}, ["train.droput", "did you mean 'dropout'"]),
        ({"train": {"dropout": 1.5}}, ["train.dropout is 1.5", "less than 1"]),
        ({"train": {"epochs": "ten"}}, ["train.epochs is 'ten'", "integer"]),
        ({"train": {"epochs": True}}, ["train.epochs is True", "integer"]),
        ({"train": {"rnn_type": "rnn"}}, ["train.rnn_type is 'rnn'", "'lstm' or 'gru'"]),
        ({"train": {"learning_rate": None}}, ["train.learning_rate is null", "number"]),
        ({"train": {"learning_rate": float("nan")}}, ["train.learning_rate is nan"]),
        ({"train": {"batch_size": 10**23}}, ["train.batch_size is 1000", "less than or equal to"]),
        ({"extract": {"batch_size": 0}}, ["extract.batch_size is 0", "1 or 'auto'"]),
        ({"extract": {"layer": "fc7"}}, ["extract.layer is 'fc7'", "'pooled' or 'grid'"]),
        (
            {"download": {"images_md5": "abc"}},
            ["download.images_md5", "32 hexadecimal digits, or null"],
        ),
        ({"extract": {"image_size": [224, 8]}}, ["extract.image_size is 8", "32"]),
        ({"extract": {"image_size": []}}, ["extract.image_size", "a list that is not empty"]),
        ({"backbone": {"name": ["resnet18", "resnet50"]}}, ["backbone: 2 names need as many"]),
        ({"prepare": {"val_fraction": 0.6, "test_fraction": 0.4}}, ["prepare", "below 1"]),
        ({"train": {"clip_norm": float("inf")}}, ["train.clip_norm is inf", "finite"]),
    ],
)
def test_for_a_bad_value_the_error_names_what_is_allowed(
    tmp_path: Path, changes: dict[str, dict[str, Any]], message: list[str]
) -> None:
    path = write_params(tmp_path / "params.yaml", **changes)
    with pytest.raises(InputError) as error:
        load_params(path, ExtractConfig)  # checks all groups
    for part in message:
        assert part in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "train: 3", "a: [", "\0", "other: {}", "? [a]\n: 1"])
def test_an_invalid_params_file_is_reported_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml"):
        load_params(path, TrainConfig)


def test_no_key_has_a_name_that_dvcs_run_cache_ignores() -> None:
    """DVC ignores `size` and `nfiles` when it looks for an earlier run, in params too.

    A stage with such a param would get the artifacts of another value.
    """
    groups = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert not {"size", "nfiles"} & {key for group in groups.values() for key in group}


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = write_params(tmp_path / "params.yaml")
    lines = [line for line in path.read_text().splitlines() if "label_smoothing" not in line]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"'train\.label_smoothing' is missing"):
        load_params(path, TrainConfig)


@pytest.mark.parametrize(
    ("group", "key", "said"),
    [
        ("train", "cell", "unknown key 'train.cell'; it was renamed to train.rnn_type"),
        ("scst", "pictures", "unknown key 'scst.pictures'; it was renamed to scst.batch_size"),
        ("captions", "dev_share", "unknown group 'captions'; it was renamed to prepare"),
    ],
)
def test_an_old_key_is_answered_with_the_new_one(
    tmp_path: Path, group: str, key: str, said: str
) -> None:
    groups = params()
    groups.setdefault(group, {})[key] = 1
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(groups, sort_keys=False))
    with pytest.raises(InputError, match=said):
        load_params(path, TrainConfig)


def test_the_docs_name_every_key_and_every_decoder() -> None:
    text = (ROOT / "docs/params.md").read_text(encoding="utf-8")
    for group, config in GROUPS.items():
        for key in config.model_fields:
            general = key in ("device", "deterministic", "checkpoint_seconds", "precision")
            assert f"{group}.{key}`" in text or f", `{key}`" in text or general, f"{group}.{key}"
    decoders = (ROOT / "docs/decoders.md").read_text(encoding="utf-8")
    for name in DECODERS:
        assert f"`{name}`" in text
        assert f"| `{name}`" in decoders


def test_every_old_key_has_a_new_one_that_exists() -> None:
    for new in RENAMED.values():
        group, *keys = new.split(" ")[0].split(".")
        fields = GROUPS[group].model_fields
        assert not keys or keys[0] in fields
        assert keys[1:] in ([], *([metric] for metric in METRICS))


def test_an_old_tolerance_is_answered_with_the_new_one(tmp_path: Path) -> None:
    path = write_params(tmp_path / "params.yaml", compare={"tolerance": {"dangling": 1.0}})
    said = r"not 'dangling' \(it was renamed to compare\.tolerance\.bad_endings\): bleu_1,"
    with pytest.raises(InputError, match=said):
        load_params(path, CompareConfig)


def test_floats_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = write_params(tmp_path / "params.yaml", train={"learning_rate": 0.123})
    path.write_text(path.read_text().replace("learning_rate: 0.123", "learning_rate: 2e-3"))
    assert "2e-3" in path.read_text()
    assert load_params(path, TrainConfig).learning_rate == 0.002


def test_a_yaml_error_names_its_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  a: [1\nb: 2\n")
    with pytest.raises(
        InputError, match=r"params\.yaml, line 3, column 2: not valid YAML: expected"
    ):
        load_params(path, TrainConfig)


def test_nested_merge_keys_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    levels = [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)]
    path.write_text("\n".join(["a0: &a0 {k: 1}", *levels]))
    # PyYAML 6.0.4 merges no key twice, so the file stays small and is rejected for its groups.
    message = r"too many nested merge keys \(<<\)|unknown group 'a0'"
    with pytest.raises(InputError, match=message):
        load_params(path, TrainConfig)
    assert parse_yaml("a: &a {k: 1}\nb: {<<: *a, l: 2}\nc: {<<: [*a]}")["b"] == {"k": 1, "l": 2}


def test_a_duplicate_key_is_rejected_as_by_dvc(tmp_path: Path) -> None:
    path = write_params(tmp_path / "params.yaml")
    path.write_text(path.read_text().replace("  beam_size: 2", "  beam_size: 2\n  beam_size: 7"))
    with pytest.raises(InputError, match="the key 'beam_size' appears twice"):
        load_params(path, ExtractConfig)


def test_a_missing_gpu_is_reported_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stage reports it, not a later one after hours."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = write_params(tmp_path / "params.yaml", evaluate={"device": "cuda"})
    with pytest.raises(InputError, match="no CUDA device is visible"):
        load_params(path, ExtractConfig)


def test_a_bad_param_stops_any_stage_before_it_starts(tmp_path: Path) -> None:
    path = write_params(tmp_path / "params.yaml", evaluate={"beam_size": 0})
    out = tmp_path / "images.zip"
    result = showtell("download", "--images", out, "--text", tmp_path / "t.zip", "--params", path)
    assert "evaluate.beam_size is 0" in one_line(result)
    assert not out.exists()
