"""One file of a data set on the hub, from this machine's cache when it is there; out of reach is told in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluators.benchmark import BenchmarkError, TaskSpec


def hub_file(spec: TaskSpec, repository: str, filename: str, revision: str, local_names: str) -> Path:
    """The file at `revision`, downloaded at most once; `HF_TOKEN` in the environment opens what is gated.

    Raises BenchmarkError, naming `local_names` as what a local folder would have to hold, when it cannot be had.
    """
    # Not datasets.load_dataset: from version 4 on it refuses repositories that are read by a script.
    import huggingface_hub as hub

    where: dict[str, Any] = {
        "repo_id": repository,
        "filename": filename,
        "repo_type": "dataset",
        "revision": revision,
    }
    if isinstance(cached := hub.try_to_load_from_cache(**where), str):
        return Path(cached)
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(**where))  # fails at once; the download retries for 20 s
        return Path(hub.hf_hub_download(**where))
    # The client raises its HTTP library's types, which change with its versions.
    except Exception as error:
        raise BenchmarkError(
            f"{spec.name}: {repository}@{revision} cannot be had from the hub ({type(error).__name__}); "
            f"connect to the internet, or set `data` to a folder that holds {local_names}."
        ) from error
