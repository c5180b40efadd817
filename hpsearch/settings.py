"""What the operator decides, read from the environment (`HPSEARCH_...`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from hpsearch.errors import HpsearchError, InvalidInput, PathNotAllowed


class Settings(BaseSettings):
    """Every setting has a default that works on one machine."""

    model_config = SettingsConfigDict(env_prefix="HPSEARCH_", frozen=True, use_attribute_docstrings=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".hpsearch")
    """Database, uploaded datasets, artifacts, caches. Ray workers on other machines need it at the same path."""
    database_url: str | None = None
    """SQLAlchemy URL; left out, SQLite in the home. PostgreSQL: `postgresql+psycopg://user:password@host/db`."""
    allowed_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders, separated by colons, below which models and data may be read; the home always."""
    tokens_file: Path | None = None
    """JSON file of hashed tokens; left out, `tokens.json` in the home."""
    webhooks_file: Path | None = None
    """JSON file of the webhooks that studies may name; left out, `webhooks.json` in the home."""
    ray_address: str | None = None
    """A running Ray cluster (`auto`, `ray-head:6379`); left out, the runner starts one on this machine."""
    lease_seconds: float = Field(20, ge=2, le=3600)
    """A runner that was not heard of for so long has lost its study to the next one."""
    studies_at_once: int = Field(50, ge=1, le=1000)
    """Studies that one runner drives at once; they share the devices, and more than these wait in the queue."""
    slice_seconds: float = Field(120, ge=1, le=86400)
    """A trial trains at least so long before it gives its place to another study; the shortest turn of a study."""
    owner_weights: dict[str, Annotated[float, Field(ge=0.001, le=1000)]] = Field(default_factory=dict)
    """Parts of the devices by the names of tokens, as JSON: `{"nightly": 0.5}`; whoever isn't named has 1."""
    device_silent_seconds: float = Field(60, ge=2, le=3600)
    """A worker's process that does not answer for so long is killed; its trials go on from their checkpoints."""
    device_stalled_seconds: float = Field(600, ge=2, le=86400)
    """A worker's training thread that is busy with one micro-batch for so long hangs, and is replaced; its trials go on
    from their checkpoints. Loading and saving, which includes downloads, may take six times as long."""
    study_bytes: int | None = Field(None, ge=2**20)
    """Room for the weights and snapshots of one study; one that has filled it pauses and loses nothing."""
    parked_trials: int = Field(4, ge=0)
    """Pruned trials of each study, the best ones, whose snapshots are kept, so that they can be continued."""
    unused_days: float = Field(14, gt=0)
    """Uploads that no study names, and folders of ended Ray sessions, are removed after so many days."""
    least_free_bytes: int = Field(256 * 2**20, ge=0)
    """Room that the disk of the home must have for a trial to start; with less, studies pause and lose nothing."""
    max_upload_bytes: int = Field(1 << 30, ge=1024)
    """Largest dataset file that may be uploaded, or written from the hub."""
    hub_timeout_seconds: float = Field(50, ge=1, le=3600)
    """Longest download of a study's hub datasets."""

    @field_validator("allowed_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return [part for part in value.split(":") if part] if isinstance(value, str) else value

    @field_validator("home", "allowed_roots", "tokens_file", "webhooks_file")
    @classmethod
    def _make_absolute(cls, value: Path | tuple[Path, ...] | None) -> Path | tuple[Path, ...] | None:
        if isinstance(value, tuple):
            return tuple(path.expanduser().resolve() for path in value)
        return value.expanduser().resolve() if value else None

    @property
    def roots(self) -> tuple[Path, ...]:
        """All folders below which models and data may be read."""
        return (*self.allowed_roots, self.home)

    @property
    def sql_url(self) -> str:
        """The database, with the embedded default filled in."""
        return self.database_url or f"sqlite:///{quote(str(self.home / 'hpsearch.db'))}"

    @property
    def datasets_folder(self) -> Path:
        """Where uploads are kept, one file per content hash."""
        return self.home / "datasets"

    @property
    def artifacts_folder(self) -> Path:
        """Where trained weights are kept: `<study>/<trial number>/`."""
        return self.home / "artifacts"

    def confirmation_folder(self, study: str) -> Path:
        """Where the weights of what confirms a study's best are kept while that is trained."""
        return self.artifacts_folder / study / "confirmation"

    @property
    def token_cache_folder(self) -> Path:
        """Where tokenised data is kept for the next worker that needs it; made by the workers."""
        return self.home / "cache" / "tokens"

    @property
    def tokens_path(self) -> Path:
        """The file of hashed tokens."""
        return self.tokens_file or self.home / "tokens.json"

    @property
    def webhooks_path(self) -> Path:
        """The file of the operator's webhooks."""
        return self.webhooks_file or self.home / "webhooks.json"

    @model_validator(mode="wrap")
    @classmethod
    def _named_as_they_are_set(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return check(values)
        except ValidationError as error:
            faults = [f"HPSEARCH_{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()]
            raise InvalidInput("; ".join(faults)) from None

    def prepare_home(self) -> None:
        """Make the folders; private, because uploads and weights are.

        Raises:
            HpsearchError: They can't be made.
        """
        for folder in (self.home, self.datasets_folder, self.artifacts_folder):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise HpsearchError(f"HPSEARCH_HOME: the folder {folder} can't be made: {error.strerror}") from None

    def locate(self, path: str, field: str) -> Path | None:
        """The existing file or folder that a person named, or None.

        An absolute path must lie below an allowed root, links followed; a relative one is looked up
        below each of them, in their order.

        Raises:
            PathNotAllowed: The path leads outside.
        """
        if "\x00" in path or "://" in path or path.startswith("~"):
            raise PathNotAllowed(f"{field}: '{path[:200]}' is not a plain path below an allowed root", field)
        outside = False
        for root in self.roots:
            try:
                candidate = (root / path).resolve()
                exists = candidate.exists()
            except (OSError, RuntimeError):  # a name that is too long, links in a circle: nothing is there
                continue
            if not candidate.is_relative_to(root):
                outside = True
            elif exists:
                return candidate
        if outside and (Path(path).is_absolute() or ".." in Path(path).parts):
            roots = ":".join(str(root) for root in self.roots)
            raise PathNotAllowed(
                f"{field}: '{path}' is outside the allowed roots ({roots}); the operator of the service "
                "can add its folder to HPSEARCH_ALLOWED_ROOTS",
                field,
            )
        return None
