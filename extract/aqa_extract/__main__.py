"""`python -m aqa_extract` is `aqa-extract`."""

from aqa_extract.cli import main

if __name__ == "__main__":
    main()
