"""`showtell serve`: a page and an HTTP API for a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.captioning.folder import load_folder
from pipeline.runtime import options
from pipeline.runtime.device import resolve_device, seed_everything
from pipeline.runtime.errors import InputError

NEEDED = ("starlette", "uvicorn", "h11", "python_multipart")


def main(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The model: `models`, or an exported folder.")
    ] = Path("models"),
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any free one.")] = 8000,
    device: options.Device = "auto",
    examples: Annotated[
        Path | None, typer.Option(help="A folder of photos that the page offers to try.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, max=10_000, help="Requests at once; more are told to wait.")
    ] = 64,
    max_batch: Annotated[int, typer.Option(min=1, max=256, help="Images captioned together.")] = 32,
    allowed_host: Annotated[
        list[str], typer.Option(help="A name that requests may use, besides this machine's own.")
    ] = [],  # noqa: B006
) -> None:
    """Show a page to caption photos in, with an HTTP API beside it."""
    try:
        from pipeline.serving.app import Service
        from pipeline.serving.examples import read_examples
        from pipeline.serving.gate import allowed_hosts, is_loopback
        from pipeline.serving.server import Server, address, listen
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        raise InputError(
            "showtell serve needs more packages; run: "
            "pip install starlette uvicorn python-multipart"
        ) from None
    seed_everything(seed=0)
    captioner = load_folder(folder, resolve_device(device))
    offered = read_examples(examples) if examples else ()
    hosts = allowed_hosts(host, allowed_host)
    service = Service(
        captioner, folder, offered, max_batch=max_batch, max_queue=max_queue, hosts=hosts
    )
    with listen(host, port) as listening:
        print(f"showtell captions photos at {address(listening)} (Ctrl-C stops it)", flush=True)
        if not is_loopback(host):
            print("it has no passwords: everyone who reaches this address can use it", flush=True)
        Server(service).run(sockets=[listening])
