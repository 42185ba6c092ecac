"""The schema of params.yaml: one frozen, strict model per group.

Schemas only check: they have no defaults and change no value. So no stage depends on this package.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.types import (
    BatchSize,
    Config,
    Count,
    Decoder,
    DeviceName,
    Fraction,
    Md5,
    OneOrMore,
    Probability,
    Rate,
    Seconds,
    Seed,
    Share,
    Size,
    Text,
    Tolerance,
)
from pipeline.decoders.registry import DECODERS, FeatureKind


class DownloadConfig(Config):
    """Where images and captions come from, and how often to retry."""

    images: OneOrMore[Text]
    images_md5: OneOrMore[Md5] | None
    text: OneOrMore[Text] | None
    text_md5: OneOrMore[Md5] | None
    on_bad_image: Literal["fail", "exclude"]
    max_excluded: Share
    retries: Annotated[int, Field(ge=0, le=100)]
    timeout: Annotated[float, Field(gt=0, le=3600)]

    @model_validator(mode="after")
    def _digest_of_each(self) -> Self:
        for key in ("images", "text"):
            sources, digests = getattr(self, key), getattr(self, f"{key}_md5")
            if digests is not None and len(sources or ()) != len(digests):
                number = len(sources or ())
                raise ValueError(f"{key}_md5 has {len(digests)} digests for {number} {key}")
        return self


class PrepareConfig(Config):
    """How captions are read, and how images are split where the source has no splits."""

    format: Literal["auto", "token", "csv", "json", "karpathy", "coco"]
    file: Text | None
    image_column: Text | None
    caption_column: OneOrMore[Text] | None
    split_column: Text | None
    on_mismatch: Literal["fail", "exclude"]
    max_excluded: Share
    splits: Literal["auto", "hash"]
    val_fraction: Fraction
    test_fraction: Fraction

    @model_validator(mode="after")
    def _leave_some_to_train_on(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self


class BackboneConfig(Config):
    """The frozen CNN, or several side by side, and where the weights of each come from."""

    name: OneOrMore[Text]
    weights: OneOrMore[Text]
    seed: Seed

    @model_validator(mode="after")
    def _weights_of_each(self) -> Self:
        if len(self.name) != len(self.weights):
            raise ValueError(
                f"{len(self.name)} names need as many weights, not {len(self.weights)}"
            )
        return self


class ExtractConfig(Config):
    """What the frozen CNN sees, and which of its features are stored."""

    layer: FeatureKind
    pooling: Literal["mean", "class_token"]
    crop_mode: Literal["center", "squash"]
    image_size: OneOrMore[Annotated[int, Field(ge=32, le=4096)] | None]
    hflip: bool
    augmentations: Annotated[int, Field(ge=0, le=64)]
    grid_size: Annotated[int, Field(ge=1, le=256)] | None
    dtype: Literal["float16", "float32"]
    shard_rows: Annotated[int, Field(ge=1)] | None
    batch_size: BatchSize | Literal["auto"]
    num_workers: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
    device: DeviceName
    deterministic: bool
    jpeg_decoder: Literal["auto", "pillow", "nvjpeg"]
    precision: Literal["auto", "float32", "float16", "bfloat16"]
    checkpoint_seconds: Seconds

    @model_validator(mode="after")
    def _pool_vectors_only(self) -> Self:
        if self.pooling == "class_token" and self.layer == "grid":
            raise ValueError("pooling: class_token needs layer: pooled")
        return self


class VocabConfig(Config):
    """Which words enter the vocabulary."""

    min_count: Count


class TrainConfig(Config):
    """The decoder and its training."""

    decoder: Decoder
    rnn_type: Literal["lstm", "gru"]
    embed_size: Size
    hidden_size: Size
    num_layers: Annotated[int, Field(ge=1, le=16)]
    num_heads: Annotated[int, Field(ge=1, le=256)]
    tie_embeddings: bool
    dropout: Probability
    word_dropout: Probability
    feature_noise: Annotated[float, Field(ge=0, le=10)]
    scheduled_sampling: Probability
    label_smoothing: Probability
    epochs: Count
    min_epoch_steps: Count
    patience: Count
    batch_size: BatchSize
    learning_rate: Rate
    warmup_ratio: Probability
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    clip_norm: Annotated[float, Field(gt=0)]
    ema_decay: Probability
    select_by: Literal["cider", "bleu_4"]
    seed: Seed
    checkpoint_seconds: Seconds
    device: DeviceName
    deterministic: bool
    precision: Literal["auto", "float32", "bfloat16"]

    @property
    def feature_kind(self) -> FeatureKind:
        """The features that the decoder takes."""
        return DECODERS[self.decoder].features

    @model_validator(mode="after")
    def _decoder_can_be_built(self) -> Self:
        spec = DECODERS[self.decoder]
        if self.tie_embeddings and self.embed_size != self.hidden_size:
            raise ValueError("with tie_embeddings: true, embed_size must equal hidden_size")
        if spec.has_heads and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size must be a multiple of num_heads ({self.num_heads})")
        if spec.single_layer and self.num_layers > 1:
            raise ValueError(f"{self.decoder} has one layer: set num_layers to 1")
        return self


class ScstConfig(Config):
    """Self-critical training of the trained decoder."""

    epochs: Annotated[int, Field(ge=0, le=1_000_000)]
    patience: Count
    batch_size: BatchSize
    samples_per_image: Annotated[int, Field(ge=2, le=64)]
    bleu_weight: Annotated[float, Field(ge=0, le=100)]
    temperature: Annotated[float, Field(gt=0, le=2)]
    learning_rate: Rate
    clip_norm: Annotated[float, Field(gt=0)]
    use_dropout: bool
    ema_decay: Probability
    cross_entropy_weight: Annotated[float, Field(ge=0, le=10)]
    seed: Seed
    checkpoint_seconds: Seconds
    device: DeviceName
    deterministic: bool
    precision: Literal["auto", "float32", "bfloat16"]


class EvaluateConfig(Config):
    """Which split is captioned, and by which search."""

    split: Literal["val", "test"]
    beam_size: Annotated[int, Field(ge=1, le=100)]
    length_penalty: Annotated[float, Field(ge=0, le=5)]
    max_length: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"]
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=10)]
    allow_unk: bool
    beam_groups: Annotated[int, Field(ge=1, le=100)]
    diversity_penalty: Annotated[float, Field(ge=0, le=100)]
    consensus_weight: Annotated[float, Field(ge=0, le=100)]
    num_neighbors: Annotated[int, Field(ge=1, le=1000)]
    batch_size: BatchSize | Literal["auto"]
    device: DeviceName
    deterministic: bool

    @model_validator(mode="after")
    def _groups_are_of_one_size(self) -> Self:
        if self.beam_size % self.beam_groups:
            raise ValueError(f"beam_size must be a multiple of beam_groups ({self.beam_groups})")
        return self


class ReportConfig(Config):
    """The images on the report's page, and the bootstrap of its intervals."""

    max_images: Count
    thumbnail_size: Annotated[int, Field(ge=16, le=1024)]
    jpeg_quality: Annotated[int, Field(ge=1, le=95)]
    resamples: Annotated[int, Field(ge=100, le=1_000_000)]
    seed: Seed


class CompareConfig(Config):
    """The confidence and tolerances of `showtell compare`; no stage uses them."""

    resamples: Annotated[int, Field(ge=1000, le=1_000_000)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    seed: Seed
    tolerance: Tolerance


class DistributedConfig(Config):
    """Who does the work of the stages; no stage depends on it, since results do not."""

    engine: Literal["local", "ray"]
    ray_address: Text | None
    workers: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"]
    processes: Annotated[int, Field(ge=1, le=1024)]
    timeout: Annotated[float, Field(gt=0, le=86_400)]


GROUPS: dict[str, type[Config]] = {
    config.group(): config
    for config in (
        DownloadConfig,
        PrepareConfig,
        BackboneConfig,
        ExtractConfig,
        VocabConfig,
        TrainConfig,
        ScstConfig,
        EvaluateConfig,
        ReportConfig,
        CompareConfig,
        DistributedConfig,
    )
}
