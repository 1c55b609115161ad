"""Where things are, from the environment: HONE_STORE, HONE_HOST, HONE_PORT, DATABASE_URL. Never what a run does.

Does not know the command line, which comes first.
"""

from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Places that a deployment chooses; a flag of the same name wins."""

    model_config = SettingsConfigDict(env_prefix="HONE_", extra="ignore")

    store: Path = Path("store")
    host: str = "127.0.0.1"
    port: int = 8000
    database_url: str | None = Field(default=None, validation_alias=AliasChoices("DATABASE_URL", "HONE_DATABASE_URL"))


def database_url(store: Path) -> str:
    """Return the URL of the database for jobs: DATABASE_URL, else SQLite beside the store's artifacts."""
    return Settings().database_url or f"sqlite:///{store / 'hone.db'}"
