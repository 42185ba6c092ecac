"""`showtell serve`: the API of a real server."""

import io
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.generation.beam_search import BeamSearchConfig
from pipeline.serving.examples import read_examples
from tests.conftest import Artifacts
from tests.helpers.serving import (
    Served,
    attending,
    attention_of,
    captioner_of,
    is_same,
    scene,
    serving,
    write_scenes,
)

pytest_plugins = ["tests.helpers.serving"]


def test_a_caption_is_the_librarys_however_the_image_is_sent(served: Served) -> None:
    content, captioner = scene(1), served.service.captioner
    expected = captioner.caption(content)
    answers = [served.post(content), served.post(content, "image/png; charset=x")]
    answers.append(served.client.post("/api/caption", files={"image": ("a.png", content)}))
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert is_same(answer.json(), expected)
    described = answers[0].json()
    assert [token["token"] for token in described["tokens"]] == list(expected.tokens)
    assert described["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert described["image"] == {"width": 128, "height": 96, "seen": [0, 0, 1, 1]}


def test_a_request_has_its_own_search(served: Served) -> None:
    content, captioner = scene(2), served.service.captioner
    search = BeamSearchConfig(4, 0.5, 6, 2, beam_groups=2, diversity_penalty=1.5)
    expected = captioner.caption(content, search, alternatives=3)
    answer = served.post(
        content,
        **{"beam_size": 4, "length_penalty": 0.5, "max_length": 6, "no_repeat_ngram_size": 2},
        **{"beam_groups": 2, "diversity_penalty": 1.5, "alternatives": 3},
    ).json()
    assert is_same(answer, expected)
    assert len(answer["alternatives"]) == len(expected.alternatives)
    assert all(map(is_same, answer["alternatives"], expected.alternatives))


def test_attention_is_a_grid_for_each_token(tiny: Artifacts, tmp_path: Path) -> None:
    captioner = attending(tiny, tmp_path)
    with serving(captioner, tmp_path) as server:
        answer = server.post(scene(3), attention="true").json()
        assert server.client.get("/api/model").json()["attention"] is True
    expected = captioner.caption(scene(3), attention=True).attention
    np.testing.assert_allclose(attention_of(answer), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"beam_size": 21}, "beam_size must be between 1 and 20"),
        ({"beam_size": "2.0"}, "beam_size must be a whole number"),
        ({"beam_size": "٣"}, "beam_size must be a whole number"),
        ({"length_penalty": "nan"}, "length_penalty must be a number"),
        ({"length_penalty": "-0.1"}, "length_penalty must be between 0 and 5"),
        ({"beam_size": 5, "beam_groups": 2}, "5 is not a multiple of beam_groups 2"),
        ({"beam_size": 2, "alternatives": 2}, "2 alternatives need a beam_size of 3"),
        ({"attention": "true"}, "this model has no attention to return"),
        ({"attention": "yes"}, "attention must be true or false"),
        ({"beam_size": [1, 2]}, "beam_size is given twice"),
        ({"beams": 2}, "there is no parameter 'beams'"),
    ],
)
def test_a_bad_parameter_is_one_line(served: Served, params: Any, message: str) -> None:
    answer = served.post(scene(0), **params)
    assert answer.status_code == 422
    assert message in answer.json()["error"]


def test_concurrent_requests_share_batches_and_get_their_own_answers(tiny: Artifacts) -> None:
    captioner, beams = captioner_of(tiny), (2, 3)
    images = [scene(seed) for seed in range(16)]
    searches = {n: BeamSearchConfig(n, max_length=12) for n in beams}
    expected = {n: list(captioner.stream(images, search)) for n, search in searches.items()}
    assert len({caption.score for caption in expected[2]}) == len(images)
    jobs = list(itertools.product(range(len(images)), beams)) * 2
    fixed = {"length_penalty": 0, "max_length": 12, "no_repeat_ngram_size": 0}
    with serving(captioner, tiny.folder) as server, ThreadPoolExecutor(16) as clients:

        def ask(job: tuple[int, int]) -> bool:
            image, beam_size = job
            answer = server.post(images[image], beam_size=beam_size, **fixed)
            assert answer.status_code == 200, answer.text
            return is_same(answer.json(), expected[beam_size][image])

        assert all(clients.map(ask, jobs))
        batches = server.service.metrics.batches
        assert batches._sum == len(jobs) > sum(batches._counts)


def test_a_failure_of_the_captioner_is_answered_and_the_next_request_served(
    tiny: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = captioner_of(tiny)
    with serving(captioner, tiny.folder) as server:
        for part in ("features", "caption_features"):
            with monkeypatch.context() as broken:
                broken.setattr(captioner, part, lambda *_: 1 // 0)
                answer = server.post(scene(1))
            assert answer.status_code == 500
            assert "internal error" in answer.json()["error"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert server.post(scene(1)).status_code == 200


def test_the_model_card_and_health(served: Served, tiny: Artifacts) -> None:
    card = served.client.get("/api/model").json()
    captioner = served.service.captioner
    assert card["decoder"] == "show_and_tell"
    assert card["vocabulary_size"] == len(captioner.vocabulary)
    assert card["search"] == asdict(captioner.search)
    assert card["card"] is None
    assert served.client.get("/health").json() == {"status": "ok"}
    served.service.stopping = True
    stopping = served.client.get("/health")
    served.service.stopping = False
    assert (stopping.status_code, stopping.json()) == (503, {"status": "stopping"})


def test_examples_are_small_and_without_metadata(tiny: Artifacts, tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "examples", 2)
    (folder / "broken.jpg").write_bytes(b"no image")
    examples = read_examples(folder)
    with serving(captioner_of(tiny), folder, examples=examples) as server:
        listed = server.client.get("/api/model").json()["examples"]
        assert listed == [{"name": str(n), "url": f"examples/{n}.jpg"} for n in range(2)]
        content = server.client.get(listed[1]["url"]).content
        assert not Image.open(io.BytesIO(content)).getexif()
        assert server.post(content, "image/jpeg").status_code == 200
        assert server.client.get("/examples/2.jpg").status_code == 404
