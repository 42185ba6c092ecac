"""`showtell merge`: the parts of a feature cache become one cache."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.load import load_params
from pipeline.config.schema import ExtractConfig
from pipeline.extraction.parts import merge
from pipeline.runtime import options


def main(
    parts: Annotated[list[Path], typer.Argument(help="All parts, in any order.")],
    out: Annotated[Path, typer.Option(help="The feature cache to write (HDF5).")] = Path(
        "features/features.h5"
    ),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Merge the parts of a feature cache that `extract --part` wrote."""
    merge(parts, out, load_params(params, ExtractConfig).shard_rows)
