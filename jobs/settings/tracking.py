"""The `tracking:` section: where the runs of a sweep are mirrored."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator

from jobs.console.addresses import SQLITE, absolute_sqlite, sqlite_path
from jobs.console.paths import local_path


class TrackingSettings(BaseModel):
    """Where runs are mirrored. Null: what MLflow's own variable says, else a sqlite file beside the results, and the name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    uri: str | None = None
    experiment: str | None = None
    experiment_id: str | None = None  # of one that is there, in place of a name

    @field_validator("uri")
    @classmethod
    def _database_is_absolute(cls, uri: str | None) -> str | None:
        # MLflow looks for a relative one in whatever folder it is then called in, and makes an empty one there.
        if uri is None or not uri.startswith(SQLITE) or uri.startswith(f"{SQLITE}/"):
            return uri
        path = sqlite_path(uri)
        return absolute_sqlite(uri, local_path(path)) if path.name else uri
