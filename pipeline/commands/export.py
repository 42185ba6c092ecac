"""`showtell export`: the trained captioner as a folder to share."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.captioning.files import CONFIDENCE, MODELS, find_backbone, find_model
from pipeline.evaluation.reports import ReportFiles
from pipeline.export.folder import export
from pipeline.export.model_card import CardDetails
from pipeline.runtime import options
from pipeline.runtime.device import seed_everything


def main(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
    model: options.OneModel = MODELS,
    backbone: options.OwnBackbone = None,
    confidence: Annotated[
        Path | None, typer.Option(help="The calibration; default: beside the model.")
    ] = None,
    reports_dir: Annotated[Path, typer.Option(help="The reports of the model's evaluation.")] = (
        Path("reports")
    ),
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write graphs that run without torch.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="The model's name; default: the folder's.")
    ] = None,
    license: Annotated[
        str, typer.Option(help="The model's licence for hubs: an SPDX identifier, or other.")
    ] = "other",
    dataset: Annotated[str | None, typer.Option(help="The data set's name.")] = None,
    data_license: Annotated[
        str | None, typer.Option(help="The licence of the training data, in a sentence.")
    ] = None,
    example: Annotated[
        list[str],
        typer.Option(help="A photo, or folder, that the card may show; repeat for more."),
    ] = [],  # noqa: B006
) -> None:
    """Write the captioner to a folder to share."""
    seed_everything(seed=0)
    details = CardDetails(name or out.resolve().name, license, dataset, data_license)
    reports, file = ReportFiles.in_folder(reports_dir), find_model(model)
    backbone = backbone or find_backbone(file)
    confidence = confidence or file.with_name(CONFIDENCE)
    export(file, backbone, confidence, reports, out, details, example, onnx)
