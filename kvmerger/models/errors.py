"""What is told of a model that cannot be used: one sentence with the remedy, whatever transformers raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


class ModelError(ValueError):
    """A model that cannot be found, or that the engine does not support."""


class ModelWarning(RuntimeWarning):
    """A model is not run as its folder says; the message says what is done instead."""


@contextmanager
def readable_errors(name: str) -> Iterator[None]:
    """Turn what transformers raises for a missing, unknown or broken model into one sentence with the remedy."""
    try:
        yield
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        raise ModelError(_not_read(name, error)) from error
    # Inside stand calls of transformers that read a user's files; a broken one raises whatever its parser meets: KeyError,
    # TypeError, UnpicklingError, RuntimeError. All of it is about those files.
    except Exception as error:
        raise ModelError(
            f"model {name!r} cannot be read; supported are {', '.join(SUPPORTED_MODEL_TYPES)} with complete weight "
            f"files. ({first_line(error)})"
        ) from error


def first_line(error: Exception) -> str:
    """What ``error`` says, without its type where that is a plain ValueError or OSError, which speak in sentences."""
    text = next(iter(str(error).strip().splitlines()), "")
    is_sentence = type(error) in (ValueError, OSError) and text
    return text if is_sentence else f"{type(error).__name__}: {text}" if text else type(error).__name__


def _not_read(name: str, error: OSError) -> str:
    # What the operating system refuses has a number; transformers' and the hub's own complaints have none.
    if error.errno is not None:
        return (
            f"model {name!r} could not be loaded: {error}. Check that its files may be read; downloads go to the folder that "
            f"HF_HOME names (~/.cache/huggingface), which must be writable and have room"
        )
    return (
        f"model {name!r} could not be loaded: it is neither a local folder nor a model the hub gave us. Check the "
        f"name and HF_TOKEN; offline, give a local folder or `demo`. ({first_line(error)})"
    )
