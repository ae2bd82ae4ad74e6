"""``python -m fusionflow``: the same as the command ``fusionflow``."""

from fusionflow.cli import main

if __name__ == "__main__":
    main(prog_name="fusionflow")
