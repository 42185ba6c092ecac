"""`python -m pipeline STAGE` is `showtell STAGE` of the code in this folder, installed or not."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
