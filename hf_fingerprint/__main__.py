"""`python -m hf_fingerprint`: the command line."""

from hf_fingerprint.cli.main import run


if __name__ == "__main__":
    run()
