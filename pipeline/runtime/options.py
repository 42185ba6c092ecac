"""Command-line options that several commands share; each command gives its own default."""

from pathlib import Path
from typing import Annotated

import typer

Params = Annotated[Path, typer.Option(help="The params file.")]
Images = Annotated[Path, typer.Option(help="The image archive.")]
Unreadable = Annotated[Path, typer.Option(help="The list of images that cannot be used.")]
Captions = Annotated[Path, typer.Option(help="The captions table.")]
Vocabulary = Annotated[Path, typer.Option(help="The vocabulary.")]
Backbone = Annotated[Path, typer.Option(help="The frozen CNN's weights.")]
OwnBackbone = Annotated[
    Path | None,
    typer.Option("--backbone", help="The frozen CNN's weights; default: beside the model."),
]
Features = Annotated[Path, typer.Option(help="The feature cache.")]
OutModel = Annotated[Path, typer.Option(help="The model to write.")]
OutHistory = Annotated[Path, typer.Option(help="The history to write (CSV).")]
Models = Annotated[
    list[Path], typer.Option(help="The trained model; repeat the option for an ensemble.")
]
Neighbors = Annotated[
    Path, typer.Option(help="The training images' captions, for consensus reranking.")
]
Confidence = Annotated[Path, typer.Option(help="The calibration of the model's confidence.")]
OwnModels = Annotated[
    list[Path],
    typer.Option(help="The model: its folder or file; repeat the option for an ensemble."),
]
OneModel = Annotated[Path, typer.Option("--model", help="The model: its folder or file.")]
Photos = Annotated[
    list[str],
    typer.Argument(
        metavar="PHOTO", help="Images: files, folders, patterns, addresses; - is standard input."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BeamSize = Annotated[int, typer.Option(min=1, max=100, help="Number of beams.")]
LengthPenalty = Annotated[
    float, typer.Option(min=0, max=5, help="0: total log-probability; 1: mean per token.")
]
