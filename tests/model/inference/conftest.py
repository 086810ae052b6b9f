"""Small checkpoints and the command line, as the tests of the tasks have them."""

from tests.tasks.conftest import absolute, esm, files, rotary

__all__ = ["absolute", "esm", "files", "rotary"]
