"""`python -m aqa_train` is `aqa-train`."""

from aqa_train.cli import main

if __name__ == "__main__":
    main()
