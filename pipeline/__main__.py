"""`python -m pipeline STAGE` runs `showtell STAGE` from this folder's code, installed or not."""

import sys

if __name__ == "__main__":
    try:
        from pipeline.cli import main
    except ModuleNotFoundError as error:
        if str(error.name).startswith("pipeline"):
            raise
        # For example, `dvc` was called by its path, and `python` is another environment's.
        sys.exit(
            f"error: {sys.executable} has no '{error.name}'; activate the project's environment: "
            "source .venv/bin/activate"
        )
    main()
