"""A way to run command lines."""

from collections.abc import Callable

import pytest

from hf_fingerprint.cli.main import main


@pytest.fixture
def run(capfd) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: `(exit code, stdout, stderr)`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run
