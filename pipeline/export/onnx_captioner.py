"""Caption images with ONNX graphs, without torch: `showtell export --onnx` puts this beside them.
Shapes: P images, k beams per image, n tokens so far, V words."""

import io
import json
import math
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if sys.version_info < (3, 10):  # noqa: UP036, for it runs elsewhere
    sys.exit("error: onnx_captioner.py needs Python 3.10 or later")
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
PAD, START, END, UNK = range(4)
ImageSource = str | Path | bytes  # a path, or the content of an image file


class OnnxCaptioner:
    """Images in, captions out."""

    def __init__(self, folder: str | Path = Path(__file__).parent, threads: int = 0) -> None:
        """Read what `showtell export --onnx` wrote; ONNX Runtime's threads are 0: one per core."""
        self._config = json.loads((Path(folder) / "onnx.json").read_text(encoding="utf-8"))
        self._words, options = self._config["vocabulary"], onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._encoder, self._memory, self._step = (
            onnxruntime.InferenceSession(Path(folder) / f"{name}.onnx", options)
            for name in ("encoder", "memory", "step")
        )

    def caption(self, images: Any, batch_size: int = 16, **search: Any) -> Any:
        """Caption one image -> str, or a list of them in batches -> list of str, with arguments of
        `search` in the place of the defaults. Raises ValueError if one cannot be read."""
        if isinstance(images, ImageSource):
            return self.caption([images], **search)[0]
        captions: list[str] = []
        for begin in range(0, len(images), batch_size):
            batch = [self.preprocess(image) for image in images[begin : begin + batch_size]]
            found = self.search(self.features(batch), **{**self._config["search"], **search})
            captions += [" ".join(self._words[token] for token in ids) for ids, _ in found]
        return captions

    def preprocess(self, image: ImageSource) -> list[np.ndarray]:
        """Read one image as the encoder takes it, per view uint8 (S, S, 3)."""
        pixels, crop_mode = decode(image), self._config["crop_mode"]
        return [_resize_and_crop(pixels, view, crop_mode) for view in self._config["views"]]

    def features(self, images: list[list[np.ndarray]]) -> np.ndarray:
        """The features of P preprocessed images."""
        return _run(self._encoder, [np.stack(view) for view in zip(*images, strict=True)])[0]

    def search(
        self,
        features: np.ndarray,
        beam_size: int,
        length_penalty: float,
        max_length: int,
        no_repeat_ngram_size: int,
        allow_unk: bool,
    ) -> list[tuple[list[int], float]]:
        """The best caption of each image: token ids without <end>, and its score."""
        state, outputs = _run(self._memory, [features]), self._memory.get_outputs()
        num_memory = sum(output.name.startswith("memory") for output in outputs)
        memory, hidden = state[:num_memory], [x[:, None] for x in state[num_memory:]]  # (P, k, …)
        token_ids = np.full((len(features), 1), START)  # (P, k)
        scores, history = np.zeros(token_ids.shape, np.float32), token_ids[..., None][..., :0]
        rows = np.arange(len(features))  # the images that are still searched
        best: list[tuple[list[int], float]] = [([], -np.inf)] * len(rows)
        for length in range(max_length + 1):
            each = np.arange(len(rows))[:, None]
            log_probs, *hidden = _run(self._step, [token_ids, *memory, *hidden])  # (P, k, V)
            _ban_repeats(log_probs, history, no_repeat_ngram_size)
            banned = [PAD, START] + [UNK] * (not allow_unk) + [END] * (length == 0)  # not empty
            log_probs[..., banned] = -np.inf
            if length == max_length:
                log_probs[..., np.arange(log_probs.shape[-1]) != END] = -np.inf
            candidates = (log_probs + scores[..., None]).reshape(len(rows), -1)  # (P, k * V)
            count = min(2 * beam_size, candidates.shape[1])  # the beam can grow even if all end
            top = np.argpartition(candidates, -count)[:, -count:]
            top = top[each, np.argsort(-candidates[each, top])]
            top_scores = candidates[each, top]
            parents, tokens = np.divmod(top, log_probs.shape[-1])
            ends = tokens == END
            # Captions finish only from the beam itself: the best k candidates.
            finishing = np.where(ends, top_scores, -np.inf)[:, :beam_size]
            finishing /= (length + 1) ** length_penalty
            for i, j in enumerate(finishing.argmax(axis=1)):
                if finishing[i, j] > best[rows[i]][1]:
                    best[rows[i]] = (history[i, parents[i, j]].tolist(), float(finishing[i, j]))
            top_scores[ends] = -np.inf
            growing = np.argsort(ends, axis=1, kind="stable")[:, :beam_size]
            scores, parents, tokens = (x[each, growing] for x in (top_scores, parents, tokens))
            # Log-probabilities only fall: this is the best that a growing beam can still become.
            bound = scores.max(axis=1) / (max_length + 1) ** length_penalty
            left = np.flatnonzero(bound > [best[row][1] for row in rows])
            if length == max_length or len(left) == 0:
                break
            beams = (left[:, None], parents[left])
            history = np.concatenate([history[beams], tokens[left, :, None]], axis=-1)
            hidden = [x[beams] for x in hidden]
            memory = memory if len(left) == len(rows) else [x[left] for x in memory]
            scores, token_ids, rows = scores[left], tokens[left], rows[left]
        return best


def _ban_repeats(log_probs: np.ndarray, history: np.ndarray, n: int) -> None:
    """Set tokens that would repeat an n-gram of `history` (P, k, length) to -inf, in place."""
    starts = history.shape[-1] - n + 1 if n else 0
    for begin in range(starts):  # where the last n - 1 tokens occurred before
        repeats = (history[..., begin : begin + n - 1] == history[..., starts:]).all(axis=-1)
        log_probs[repeats, history[repeats, begin + n - 1]] = -np.inf


def _run(session: onnxruntime.InferenceSession, inputs: list[np.ndarray]) -> list[np.ndarray]:
    return session.run(None, {x.name: y for x, y in zip(session.get_inputs(), inputs, strict=True)})


def decode(source: ImageSource) -> np.ndarray:
    """Decode an image file -> uint8 (H, W, 3): upright, RGB, transparency on white."""
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content), formats=FORMATS))
        if image.mode.startswith("I;16"):  # Pillow would clip
            image = image.convert("I").point(lambda value: value / 257).convert("L")
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        name = "the image" if isinstance(source, bytes) else source
        raise ValueError(f"{name} cannot be read ({error})") from None


def _resize_and_crop(image: np.ndarray, view: dict[str, Any], crop_mode: str) -> np.ndarray:
    """(H, W, 3) -> (S, S, 3)."""
    size, sides = view["size"], image.shape[:2]
    if crop_mode == "squash":
        return resize(image, (size, size), view["interpolation"])
    height, width = (int(view["resize"] * side / min(sides)) for side in sides)
    top, left = (round((side - size) / 2) for side in (height, width))
    image = resize(image, (height, width), view["interpolation"])
    return image[top : top + size, left : left + size]


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize uint8 (H, W, 3) to the byte as torch's `F.interpolate(antialias=True)` does."""
    for side in size[::-1]:  # the columns, then the rows
        image = image.swapaxes(0, 1)
        if len(image) != side:
            first, weights, bits = _resize_weights(len(image), side, interpolation)
            rows = image.reshape(len(image), -1)
            sums = np.full((side, rows.shape[1]), 1 << (bits - 1), np.int32)
            for offset, weight in enumerate(weights.T):
                sums += weight[:, None] * rows[np.minimum(first + offset, len(rows) - 1)]
            image = (sums >> bits).clip(0, 255).astype(np.uint8).reshape(side, -1, 3)
    return image


@lru_cache
def _resize_weights(length: int, size: int, kind: str) -> tuple[np.ndarray, np.ndarray, int]:
    """For each new row the first old row (size,), and weights (size, n) of int16's range; and how
    many of their bits are a fraction."""
    scale = length / size
    stretch, radius = max(scale, 1.0), 2 if kind == "bicubic" else 1
    centers = scale * (np.arange(size) + 0.5)[:, None]
    first = np.maximum((centers - radius * stretch + 0.5).astype(int), 0)
    end = np.minimum((centers + radius * stretch + 0.5).astype(int), length)
    rows = first + np.arange((end - first).max())
    x = np.minimum(np.abs((rows - centers + 0.5) * (1 / stretch)), radius)
    weights = 1 - x  # a triangle
    if kind == "bicubic":
        weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weights *= rows < end
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # in the order in which torch adds
    bits = min(22, math.ceil(math.log2((2**15 - 0.5) / weights.max())) - 1)
    weights = weights * 2**bits + np.copysign(0.5, weights)
    return first[:, 0], weights.astype(np.int32), bits  # towards 0


def main(paths: list[str]) -> int:
    if not paths or {"-h", "--help"} & {*paths}:
        sys.exit("usage: python onnx_captioner.py PHOTO…")
    captioner, failed = OnnxCaptioner(), 0
    for path in paths:
        try:
            print(f"{path}\t{captioner.caption(path)}", flush=True)
        except ValueError as error:
            failed = 1
            print(f"error: {error}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
