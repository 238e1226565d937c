"""`python -m audiolm_lite JOB ...` is the `audiolm-lite` command."""

from audiolm_lite.cli import main

if __name__ == "__main__":
    main()
