"""Whatever reading a model raises is one sentence that names it and the remedy."""

import errno
import pickle

import pytest
import torch

from kvmerger.models.errors import ModelError, first_line, readable_errors


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("its first line\nand a trace"),
            "'m' cannot be read; .* complete weight files. .its first line.$",
        ),
        (ImportError("needs gptqmodel"), "cannot be read; .*ImportError: needs gptqmodel"),
        (RuntimeError("size mismatch"), "cannot be read; .*RuntimeError: size mismatch"),
        (KeyError("rope_theta"), "cannot be read; .*KeyError: 'rope_theta'"),
        (pickle.UnpicklingError("no tensors"), "cannot be read; .*UnpicklingError: no tensors"),
        (EOFError(), "cannot be read; .*EOFError.$"),
        (OSError("we cannot reach the hub"), "neither a local folder nor .* offline, give a local folder"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/hub/x"),
            "Permission denied: '/hub/x'.*HF_HOME",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left.*HF_HOME .*have room"),
    ],
    ids=lambda it: type(it).__name__,
)
def test_every_kind_of_error_becomes_a_sentence(error: Exception, said: str) -> None:
    with pytest.raises(ModelError, match=said) as raised, readable_errors("m"):
        raise error
    assert "\n" not in str(raised.value) and raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [ModelError("told already"), torch.OutOfMemoryError("full"), MemoryError("full")]
)
def test_what_says_nothing_of_the_files_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, readable_errors("m"):
        raise error
    assert raised.value is error


def test_the_first_line_of_an_error_without_text_is_its_type() -> None:
    assert (first_line(ValueError("")), first_line(OSError("a\nb"))) == ("ValueError", "a")
