"""`python -m odeddim` is the command line."""

from odeddim.cli import main

if __name__ == "__main__":
    main()
