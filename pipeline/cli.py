"""The `showtell` command: the stages, and the commands outside the DVC graph.

Each command is a module of its own, imported only when it is called: `--help` must not wait for
torch.
"""

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

from pipeline import __version__
from pipeline.entrypoint import app, one_line_errors

STAGES = {
    "download": "Bring images and captions here, and check the images.",
    "prepare": "Tokenise every caption into one table.",
    "backbone": "Get the frozen CNN's weights.",
    "extract": "Extract the frozen CNN's features of every image, once.",
    "vocab": "Choose the vocabulary from the training captions.",
    "neighbors": "Collect the training images for consensus reranking.",
    "train": "Train the decoder on the cached features.",
    "scst": "Train the decoder on its own captions' scores.",
    "calibrate": "Fit how confident the model may be of its captions.",
    "evaluate": "Caption a split and score the captions.",
    "report": "Write the run's page: scores, curves, images and provenance.",
}
USER_COMMANDS = {
    "compare": "Compare two runs: is one better, and is the difference real?",
    "caption": "Caption your own images with the trained model.",
    "export": "Write the captioner to a folder to share.",
    "serve": "Show a page to caption photos in, with an HTTP API beside it.",
    "attention": "Draw what each word of a caption looked at.",
    "merge": "Merge the parts of a feature cache that `extract --part` wrote.",
    "recipe": "List the recipes, or print the params of some as options.",
    "demo": "Run the whole graph on a small synthetic data set, offline.",
}
COMMANDS = STAGES | USER_COMMANDS
MODULES = (
    {name: f"pipeline.stages.{name}" for name in STAGES}
    | {name: f"pipeline.commands.{name}" for name in USER_COMMANDS}
    | {"demo-pretrain": "pipeline.demo.pretrain"}  # for maintainers: not in --help
)


class LazyGroup(TyperGroup):
    """Lists the commands without importing them; imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in MODULES:
            return None
        command = app()
        command.command(name)(importlib.import_module(MODULES[name]).main)
        return typer.main.get_command(command)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, commands in (("Stages, in order", STAGES), ("Other commands", USER_COMMANDS)):
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


def _print_version(requested: bool) -> None:
    if requested:
        print(f"showtell {__version__}")
        raise typer.Exit


showtell = app(name="showtell", cls=LazyGroup, no_args_is_help=True)


@showtell.callback()
def _showtell(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True),
) -> None:
    """Image captioning on cached, frozen CNN features.

    `dvc repro` runs the stages in order; each also runs alone.
    """


def main() -> None:
    with one_line_errors():
        showtell()
