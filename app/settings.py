"""Where things are, from the environment: HONE_STORE, _HOST, _PORT, _RANKER, DATABASE_URL. Never what a run does.

Does not know the command line, which comes first.
"""

from pathlib import Path

from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from retriever.errors import InputError


class Settings(BaseSettings):
    """Places that a deployment chooses; a flag of the same name wins.

    Raises InputError naming the variable whose value does not fit.
    """

    model_config = SettingsConfigDict(env_prefix="HONE_", extra="ignore")

    store: Path = Path("store")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    ranker: Path | None = None
    database_url: str | None = Field(default=None, validation_alias=AliasChoices("DATABASE_URL", "HONE_DATABASE_URL"))

    def __init__(self) -> None:
        """Read the environment."""
        try:
            super().__init__()
        except ValidationError as error:
            first = error.errors()[0]
            name = f"HONE_{first['loc'][0]}".upper()
            raise InputError(f"{name}={first['input']}: {first['msg']}; mend or unset it") from error


def database_url(store: Path) -> str:
    """Return the URL of the database for jobs: DATABASE_URL, else SQLite beside the store's artifacts."""
    return Settings().database_url or f"sqlite:///{store / 'hone.db'}"
