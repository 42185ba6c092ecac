"""`python -m pipeline STAGE` is `showtell STAGE` of the code in this folder, installed or not."""

import sys

if __name__ == "__main__":
    try:
        from pipeline.cli import main
    except ModuleNotFoundError as error:
        if str(error.name).startswith("pipeline"):
            raise
        # `dvc` was called by its path, say, so that `python` is another environment's.
        sys.exit(
            f"error: {sys.executable} has no '{error.name}'; enter the project's environment: "
            "source .venv/bin/activate"
        )
    main()
