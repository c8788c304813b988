"""`python -m aqa_pipelines` is `aqa`."""

from aqa_pipelines.cli import main

if __name__ == "__main__":
    main()
