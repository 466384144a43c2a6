"""Every setting, from environment variables and one YAML file; the environment is read here alone."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from embedding_platform.errors import PlatformError
from embedding_platform.spaces import MODEL_SETS, Index, Space, index_fault, usual_index

PREFIX = "EMBEDDING_PLATFORM_"
FILE_VARIABLE = f"{PREFIX}SETTINGS"
DEFAULT_FILE = "embedding_platform.yaml"

_PINNED_BY_NAME = ("package:", "torch_hub:", "openai:")
"""Beginnings of models whose place or name pins them, so that they need no commit."""

_ARGUMENT = "base"
"""The one field of Settings that `load_settings` alone sets."""

_CRON_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day", 1, 31, ()),
    ("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    ("weekday", 0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
"""The fields of a cron line: name, least and greatest number, and the names of the numbers from the least on."""

_USER = re.compile(r"(?<!abfs)(?<!abfss)://([^/\s]*:\S*|[^/\s]*)@")
"""User and password of a URL: up to the last @ of its host, or of all of it where the host may be a user with a :.
What stands before the @ of an Azure URL is a container."""

_OWNER = re.compile(r"team:\S+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")
"""A team or an email address, as Dagster takes them for the owner of an asset."""

_LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MilvusSettings(_Section):
    """Where the collections live: a folder for Milvus Lite, or the URL of a server or of Zilliz Cloud."""

    uri: str = ".embedding_platform/milvus"
    token: SecretStr = SecretStr("")
    timeout_seconds: float = Field(default=30.0, gt=0)
    named_partitions: int = Field(default=512, ge=1, le=1023)
    searchable_seconds: float = Field(default=60.0, gt=0)
    import_root: str | None = None
    import_rows: int = Field(default=50_000, ge=1)
    search_words: bool | None = None


class OpenAISettings(_Section):
    """A server that speaks OpenAI's embeddings protocol, for the spaces that name one of its models."""

    url: str = "https://api.openai.com/v1"
    key: SecretStr = SecretStr("")
    timeout_seconds: float = Field(default=30.0, gt=0)
    requests: int = Field(default=4, ge=1)
    items_per_request: int = Field(default=2048, ge=1)


class BatchSettings(_Section):
    """Most tokens, images, audio windows and video clips in one model batch, and vectors in one durable chunk.

    Without a number, batches are as large as suits the device, and chunks as suits a file and the memory. For a model
    behind a server, whose tokens are not known here, `text` counts bytes.
    """

    text: int | None = Field(default=None, ge=1)
    image: int | None = Field(default=None, ge=1)
    audio: int | None = Field(default=None, ge=1)
    video: int | None = Field(default=None, ge=1)
    chunk: int | None = Field(default=None, ge=1)
    readers: int = Field(default=2, ge=1)


class CuttingSettings(_Section):
    """How files become segments."""

    overlap_tokens: int = Field(default=32, ge=0)
    audio_window_seconds: float = Field(default=30.0, gt=0, le=30.0)
    clip_seconds: float = Field(default=2.56, ge=0.64)


class ListingSettings(_Section):
    """When a source that is found empty is not believed, and when one that changes is left alone for now.

    The last listing of a source with `large_source` files or more is kept while its folder is
    there and holds no media, unless `allow_emptied` names it. Sensors wait until nothing has changed
    in a source for `quiet_seconds`, so that files are not met half copied, but for
    `longest_wait_seconds` at most.

    `buckets` names folders under the media root that hold more files than one run should take in hand, and how
    many sources their files are shared out to: `photos: 16` makes `photos~00of16` to `photos~15of16` of them.
    """

    large_source: int = Field(default=100, ge=1)
    allow_emptied: list[str] = []
    quiet_seconds: float = Field(default=10.0, ge=0)
    longest_wait_seconds: float = Field(default=600.0, ge=0)
    buckets: dict[Annotated[str, Field(pattern="^[^/]+$")], Annotated[int, Field(ge=1, le=1000)]] = {}


class DecodingSettings(_Section):
    """The most that decoding one file may take. Above it a file is rejected, and tried again when the limit is raised.

    A document is text, HTML or a PDF; `max_document_memory_megabytes` bounds each process that
    parses PDF, and HTML and text above 16 KiB: one process for each reader at work.
    `max_image_memory_megabytes` bounds what each reader holds to decode an image. Sound and video
    have `max_seconds` again for every minute that they play.
    """

    max_seconds: float = Field(default=120.0, gt=0)
    max_megabytes: int = Field(default=4096, ge=1)
    max_document_megabytes: int = Field(default=64, ge=1)
    max_document_memory_megabytes: int = Field(default=2048, ge=256)
    max_image_memory_megabytes: int = Field(default=2048, ge=1)
    max_pixels: int = Field(default=178_956_970, ge=1)
    max_frame_pixels: int = Field(default=2**26, ge=1)
    max_hours: float = Field(default=24.0, gt=0)


class QualitySettings(_Section):
    """What the checks demand before vectors reach readers."""

    max_rejected_share: float = Field(default=0.5, ge=0, le=1)
    max_failed_share: float = Field(default=0.05, ge=0, le=1)
    max_duplicate_share: float = Field(default=0.5, ge=0, le=1)
    max_shift: float = Field(default=0.1, ge=0)
    max_listing_hours: float = Field(default=36.0, gt=0)
    min_cosine_distance: float = Field(default=0.001, ge=0)
    min_recall: float = Field(default=0.95, ge=0, le=1)
    min_recall_at_100: float = Field(default=0.9, ge=0, le=1)
    recall_sample: int = Field(default=50, ge=1)
    audit_rows: int = Field(default=1000, ge=0)
    queries: dict[str, str] = {}


class RetentionSettings(_Section):
    """What `embedding-platform prune` leaves alone besides what is in use."""

    collections: int = Field(default=1, ge=0)


class AlertSettings(_Section):
    """Who hears of failed runs besides the log: a URL that takes a POST of JSON, which may hold a secret."""

    webhook: SecretStr = SecretStr("")
    timeout_seconds: float = Field(default=3.0, gt=0, le=10)
    stale_seconds: float = Field(default=3600.0, gt=0)

    @field_validator("webhook")
    @classmethod
    def _refuse_what_is_no_address(cls, webhook: SecretStr) -> SecretStr:
        if not re.fullmatch(r"(https?://[^\s/@]+(/\S*)?)?", webhook.get_secret_value()):
            raise ValueError("no address of the web; write http:// or https://, a host and a path, without a user")
        return webhook


class ScheduleSettings(_Section):
    """One more schedule: what it does, when, and for which modalities, spaces and sources; without names for all."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    does: Literal["reconcile", "maintenance", "probe"]
    cron: str
    modalities: list[str] | None = None
    spaces: list[str] | None = None
    sources: list[str] | None = None

    @field_validator("cron")
    @classmethod
    def _refuse_what_is_no_cron_line(cls, line: str) -> str:
        return _cron_line(line)

    @model_validator(mode="after")
    def _refuse_what_it_does_not_take(self) -> "ScheduleSettings":
        if self.does == "maintenance" and (self.modalities or self.spaces or self.sources):
            raise ValueError(f"schedule {self.name} names modalities, spaces or sources, but maintenance is of all")
        if self.does == "probe" and self.sources:
            raise ValueError(f"schedule {self.name} names sources, but a probe is of whole spaces; name spaces")
        for field in ("modalities", "spaces", "sources"):
            if getattr(self, field) == []:
                raise ValueError(f"schedule {self.name} names no {field}, and would do nothing; leave {field} out")
        return self

    def of(self, kept: Sequence[Space]) -> list[Space]:
        """Those of the spaces kept that it is for."""
        return [
            space
            for space in kept
            if (self.spaces is None or space.key in self.spaces)
            and (self.modalities is None or space.modality in self.modalities)
        ]

    def title(self, modality: str = "") -> str:
        """The name under which Dagster knows it: one for each modality of a round."""
        return f"{modality}_{self.name}" if self.does == "reconcile" else f"{self.name}_{self.does}"


class ServingSettings(_Section):
    """The search page and its API: who may use them, and the most that one request may ask for.

    Without a token they serve this machine alone. `dagster_url` is where people open the web UI.
    """

    token: SecretStr = SecretStr("")
    dagster_url: str = Field(default="http://127.0.0.1:3000", pattern=r"^https?://[^\s@]+$")
    upload_megabytes: int = Field(default=64, ge=1)
    upload_seconds: float = Field(default=30.0, gt=0)
    most_hits: int = Field(default=100, ge=1, le=1000)
    concurrent_searches: int = Field(default=2, ge=1)

    @field_validator("token")
    @classmethod
    def _refuse_what_is_guessed(cls, token: SecretStr) -> SecretStr:
        secret = token.get_secret_value()
        if secret and not re.fullmatch("[!-~]{16,}", secret):
            raise ValueError("a token is 16 or more ASCII letters, digits and signs without a space")
        return token


class IndexSettings(_Section):
    """A vector index for one space: type, and the build and search parameters that are not the default."""

    type: Literal["HNSW", "FLAT", "IVF_FLAT", "IVF_SQ8", "AUTOINDEX"]
    build: dict[str, int] = {}
    search: dict[str, int] = {}

    @property
    def index(self) -> Index:
        """The index with its usual parameters, where these settings name no other."""
        return usual_index(self.type, self.build, self.search)

    @model_validator(mode="after")
    def _refuse_what_milvus_does_not_take(self) -> "IndexSettings":
        if fault := index_fault(self.index):
            raise ValueError(fault)
        return self


class Settings(BaseSettings):
    """All settings of one platform; `load_settings` makes them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    base: Path = Field(default_factory=Path.cwd, description="folder that relative paths start from")
    media_root: str = "media"
    store_root: str = ".embedding_platform/store"
    cache_root: str = ".embedding_platform/cache"
    metadata_page: str = ""
    milvus: MilvusSettings = MilvusSettings()
    model_set: Literal["starter", "hub"] = "starter"
    spaces: list[str] | None = None
    models: dict[str, str] = {}
    indexes: dict[str, IndexSettings] = {}
    generations: dict[str, Annotated[int, Field(ge=0)]] = {}
    openai: OpenAISettings = OpenAISettings()
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    runtime: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: BatchSettings = BatchSettings()
    listing: ListingSettings = ListingSettings()
    decoding: DecodingSettings = DecodingSettings()
    cutting: CuttingSettings = CuttingSettings()
    quality: QualitySettings = QualitySettings()
    retention: RetentionSettings = RetentionSettings()
    serving: ServingSettings = ServingSettings()
    sensor_seconds: int = Field(default=30, ge=5)
    nightly: str = "0 2 * * *"
    hourly: str = "15 * * * *"
    weekly: str = "0 4 * * 0"
    timezone: str = "UTC"
    schedules: list[ScheduleSettings] = []
    alerts: AlertSettings = AlertSettings()
    owners: list[str] = ["team:data-platform"]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, which wins over the YAML file."""
        return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls))

    @cached_property
    def active_spaces(self) -> tuple[Space, ...]:
        """The spaces to keep, with the models and indexes that these settings put in."""
        chosen = [
            space
            for space in MODEL_SETS[self.model_set]
            if (not space.on_request if self.spaces is None else space.key in self.spaces)
        ]
        return tuple(self._adjusted(space) for space in chosen)

    @property
    def media_url(self) -> str:
        """The media root as an absolute path or URL."""
        return self._absolute(self.media_root)

    @property
    def store_url(self) -> str:
        """The store root as an absolute path or URL."""
        return self._absolute(self.store_root)

    @property
    def cache_folder(self) -> str:
        """The local folder of what can be made again: networks converted for a runtime, notes of what is decoded."""
        return self._absolute(self.cache_root)

    @property
    def decoding_notes(self) -> str:
        """The local folder that says which files are being decoded, and which were when a process died."""
        return f"{self.cache_folder}/decoding"

    @property
    def milvus_uri(self) -> str:
        """Milvus as an absolute folder (Milvus Lite) or the URL of a server."""
        return self.milvus.uri if self.milvus.uri.startswith("unix:") else self._absolute(self.milvus.uri)

    @property
    def milvus_is_folder(self) -> bool:
        """Whether Milvus is a folder, which Milvus Lite opens, and no server."""
        return not re.match(r"unix:|\w+://", self.milvus_uri)

    @property
    def search_words(self) -> bool:
        """Whether text is to be found by its words too; decided without asking Milvus, which may be away.

        Without a setting that is so in a folder, whose Milvus Lite is known to do it.
        """
        named = self.milvus.search_words
        return self.milvus_is_folder if named is None else named

    def finds_words(self, space: Space) -> bool:
        """Whether rows of the space are found by the words of their texts too."""
        return self.search_words and space.modality == "text"

    @property
    def milvus_in_place(self) -> MilvusSettings:
        """The milvus section with `import_root` as an absolute path or URL."""
        root = self.milvus.import_root
        return self.milvus.model_copy(update={"import_root": self._absolute(root) if root else None})

    def queries_url(self, space_key: str) -> str | None:
        """The file or folder of a space's held-out queries as an absolute path or URL; None without one."""
        named = self.quality.queries.get(space_key)
        return self._absolute(named) if named else None

    def _absolute(self, path: str) -> str:
        scheme, _, place = path.partition("://")
        if place and scheme != "file":
            return f"{scheme}://{place.rstrip('/')}"
        return os.path.normpath(self.base / Path(place or path).expanduser())

    def _adjusted(self, space: Space) -> Space:
        if space.key in self.models:
            location, revision = self.models[space.key], None
            if _is_folder(location):
                location = self._absolute(location)
            elif not location.startswith(_PINNED_BY_NAME):
                location, _, revision = location.partition("@")
            space = replace(space, model=replace(space.model, location=location, revision=revision))
        if space.model.location.startswith("openai:"):
            # Servers give other vectors under one name, so that the server is part of what the model is.
            location = f"{space.model.location}@{self.openai.url.rstrip('/')}"
            space = replace(space, model=replace(space.model, location=location))
        if space.key in self.indexes:
            space = replace(space, index=self.indexes[space.key].index)
        return replace(space, generation=self.generations.get(space.key, 0))

    @field_validator("nightly", "hourly", "weekly")
    @classmethod
    def _refuse_what_is_no_cron_line(cls, line: str) -> str:
        return _cron_line(line)

    @field_validator("timezone")
    @classmethod
    def _refuse_an_unknown_timezone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("no time zone of this machine; write one such as UTC or Europe/Berlin") from None
        return name

    @field_validator("metadata_page")
    @classmethod
    def _refuse_what_is_no_page(cls, page: str) -> str:
        if not re.fullmatch(r"(https?://[^\s/?#@]+(/[^\s?#]*)?)?", page):
            raise ValueError("no page of the web; write http:// or https://, a host and a path, without user, ? and #")
        return page

    @field_validator("owners")
    @classmethod
    def _refuse_what_owns_nothing(cls, owners: list[str]) -> list[str]:
        for owner in owners:
            if not _OWNER.fullmatch(owner):
                raise ValueError(f"{owner!r} owns no asset; write team:NAME or an email address")
        return owners

    @model_validator(mode="after")
    def _refuse_the_impossible(self) -> "Settings":
        known = [space.key for space in MODEL_SETS[self.model_set]]
        named = {name: getattr(self, name) or () for name in ("spaces", "models", "indexes", "generations")}
        for name, keys in {**named, "quality.queries": self.quality.queries}.items():
            for key in keys:
                if key not in known:
                    raise ValueError(
                        f"{name} names {key!r}, no space of model_set {self.model_set}; {_closest(key, known)}"
                    )
        described = {space.key: space.model for space in MODEL_SETS[self.model_set]}
        for key, location in self.models.items():
            if (described[key].family == "openai") != location.startswith("openai:"):
                mend = "write openai:NAME" if described[key].family == "openai" else "choose a space named openai_..."
                raise ValueError(f"models.{key} = {location!r} is not of the family that the space has; {mend}")
            if _is_folder(location) or location.startswith(_PINNED_BY_NAME):
                continue
            # A branch moves: vectors of two models would lie in one collection.
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?@[0-9a-f]{40}", location):
                name = location.partition("@")[0]
                raise ValueError(
                    f"models.{key} = {location!r} is no model at a commit; write {name}@<40 hex digits of the commit>, "
                    f"or a folder as ./{name}"
                )
        if self.spaces == []:
            raise ValueError("spaces is an empty list, so that nothing would be kept; name some, or leave it out")
        if self.device == "cpu" and self.precision == "float16":
            raise ValueError("precision float16 does not run on device cpu; choose float32 or bfloat16")
        for space in self.active_spaces:
            if space.modality == "text" and self.cutting.overlap_tokens * 2 > (space.model.max_tokens or 512):
                raise ValueError(
                    f"cutting.overlap_tokens {self.cutting.overlap_tokens} is over half of the "
                    f"{space.model.max_tokens} tokens that {space.key} reads; choose fewer"
                )
        if _USER.search(self.openai.url):
            raise ValueError("openai.url holds a password, which every row would show; leave it out and set openai.key")
        user = _USER.search(self.media_root)
        if user and ":" in user[1]:
            protocol = self.media_root.partition("://")[0].upper()
            raise ValueError(
                f"media_root {self.media_root} holds a password, which every row would show; leave it out and set "
                f"FSSPEC_{protocol}_USERNAME and FSSPEC_{protocol}_PASSWORD"
            )
        if _USER.search(self.milvus.import_root or ""):
            raise ValueError("milvus.import_root holds a user or password; leave it out, as in media_root")
        for key, place in self.quality.queries.items():
            if _USER.search(place):
                raise ValueError(f"quality.queries.{key} holds a user or password; leave it out, as in media_root")
        self._refuse_schedules_of_nothing()
        if "://" in self.cache_folder:
            raise ValueError(f"cache_root {self.cache_root} is no local folder; OpenVINO reads networks from disk")
        places = {"store_root": self.store_url, "cache_root": self.cache_folder, "milvus.uri": self.milvus_uri}
        for name, place in places.items():
            if f"{place}/".startswith(f"{self.media_url}/"):
                raise ValueError(f"{name} {place} lies inside media_root, which would index itself; move it out")
        return self

    def _refuse_schedules_of_nothing(self) -> None:
        kept = {
            "modalities": sorted({space.modality for space in self.active_spaces}),
            "spaces": [space.key for space in self.active_spaces],
        }
        names = ["nightly", "hourly", "weekly"]
        titles = {f"{modality}_{name}" for modality in kept["modalities"] for name in ("media", "nightly")}
        for schedule in self.schedules:
            if schedule.name in names:
                raise ValueError(f"two schedules are called {schedule.name}; rename one of schedules")
            names.append(schedule.name)
            for field, known in kept.items():
                for one in getattr(schedule, field) or ():
                    if one not in known:
                        mend = _closest(one, known)
                        raise ValueError(f"schedule {schedule.name} names {one!r}, none of the {field} kept; {mend}")
            for title in dict.fromkeys(schedule.title(space.modality) for space in schedule.of(self.active_spaces)):
                if title in titles:
                    raise ValueError(
                        f"schedule {schedule.name} would be {title} in the web UI, as a sensor or another schedule is; "
                        "rename it"
                    )
                titles.add(title)


def load_settings(file: str | Path | None = None, **overrides: Any) -> Settings:
    """Settings in force: `overrides`, then the environment, then the YAML file, then defaults.

    The file is `file`, or what EMBEDDING_PLATFORM_SETTINGS names, or ./embedding_platform.yaml
    where that exists. Relative paths start from the file's folder.

    Raises:
        PlatformError: naming the key, the value and the mend for everything that is wrong.
    """
    named = file or os.environ.get(FILE_VARIABLE)
    path = Path(named or DEFAULT_FILE).absolute()
    if named and not path.is_file():
        raise PlatformError(f"settings file {path} is not there; name one that is, or leave {FILE_VARIABLE} unset")
    _refuse_unknown_variables()
    if path.is_file():
        _refuse_unreadable(path)

    class FileSettings(Settings):
        model_config = SettingsConfigDict(yaml_file=path if path.is_file() else None, yaml_file_encoding="utf-8")

    try:
        return FileSettings(**{"base": path.parent, **overrides})
    except ValidationError as error:
        raise PlatformError("; ".join(_explain(problem) for problem in error.errors())) from None
    except SettingsError as error:
        field = re.search('field "([^"]+)"', str(error))
        variable = f"{PREFIX}{field[1].upper()}" if field else f"one that begins with {PREFIX}"
        raise PlatformError(f"environment variable {variable} is no JSON; mend it or unset it") from None


def masked(settings: Settings) -> dict[str, Any]:
    """The settings as plain data for printing: token, key and passwords inside URLs are stars."""
    shown = {name: _without_passwords(value) for name, value in settings.model_dump(mode="json").items()}
    shown["milvus"]["token"] = "*****" if settings.milvus.token.get_secret_value() else ""
    shown["openai"]["key"] = "*****" if settings.openai.key.get_secret_value() else ""
    shown["alerts"]["webhook"] = "*****" if settings.alerts.webhook.get_secret_value() else ""
    shown["serving"]["token"] = "*****" if settings.serving.token.get_secret_value() else ""
    return shown


def without_password(text: str) -> str:
    """A text whose URLs show stars in place of user and password, and of what follows a question mark.

    A password may hold @ or / unescaped, so that what cannot be told from one is hidden too.
    """
    return re.sub(r"(abfss?)?://\S+", _without_password, text)


def _without_password(url: re.Match[str]) -> str:
    user = _USER.match(url[0])
    if user and "?" in user[0]:
        # Part of the password, or the query: the @ after it does not tell where either ends.
        return "://*****"
    place, _, query = url[0][user.end() if user else 0 :].partition("?")
    return f"{'://*****@' if user else ''}{place}{'?*****' if query else ''}"


def _without_passwords(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_passwords(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_passwords(inner) for inner in value]
    return without_password(value) if isinstance(value, str) else value


def _refuse_unknown_variables() -> None:
    known = [f"{PREFIX}{name.upper()}" for name in _names()] + [FILE_VARIABLE]
    for name in os.environ:
        # In whatever case, since variables are read in any.
        if name.upper().startswith(PREFIX) and name.upper().split("__")[0] not in known:
            raise PlatformError(f"environment variable {name} is no setting; {_closest(name, known)} or unset it")


def _refuse_unreadable(path: Path) -> None:
    """Refuse a file that holds no table of settings, without showing what it holds."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise PlatformError(f"settings file {path} cannot be read: {error.strerror}; permit reading it") from None
    except UnicodeDecodeError:
        raise PlatformError(f"settings file {path} is not UTF-8; save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # YAML quotes what it stumbles over, which may be a token that begins with * or !.
        reason = re.sub(
            r"'[^'<]{2,}'", "'*****'", str(getattr(error, "problem", None) or "it holds control characters")
        )
        raise PlatformError(f"{path}{place} is not valid YAML: {reason}; mend that line") from None
    if content is not None and not isinstance(content, dict):
        raise PlatformError(f"settings file {path} is no table; write a line such as key: value for each setting")
    for key in content or ():
        if not isinstance(key, str) or key == _ARGUMENT:
            raise PlatformError(f"{key} in {path}: no such setting; {_closest(key, _names())}")


def _names() -> list[str]:
    """The settings that file and environment may hold."""
    return [name for name in Settings.model_fields if name != _ARGUMENT]


def _is_folder(location: str) -> bool:
    return location.startswith((".", "~", "/"))


def _cron_line(line: str) -> str:
    """The line itself.

    Raises:
        ValueError: if it is no cron line, or of a day that never comes.
    """
    fields = line.split()
    if len(fields) != len(_CRON_FIELDS):
        names = " ".join(name for name, *_ in _CRON_FIELDS)
        raise ValueError(f"a cron line has five fields, {names}, such as 0 2 * * *")
    _, _, days, months, _ = (_cron_numbers(field, *known) for field, known in zip(fields, _CRON_FIELDS, strict=True))
    if min(days) > max(_LONGEST_MONTHS[month - 1] for month in months):
        raise ValueError(f"no month {fields[3]} has a day {fields[2]}, so that it would never run")
    return line


def _cron_numbers(field: str, name: str, low: int, high: int, words: tuple[str, ...]) -> set[int]:
    """The numbers that a field of a cron line stands for: lists of *, numbers and ranges, with steps.

    Raises:
        ValueError: naming the field and what it may hold.
    """
    numbers: set[int] = set()
    for part in field.lower().split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            ends = [low, high]
        else:
            ends = [
                low + words.index(end) if end in words else _whole(end) for end in ([first, last] if dash else [first])
            ]
            if slash and not dash:
                ends.append(high)
        if not low <= ends[0] <= ends[-1] <= high or (slash and _whole(step) < 1):
            choices = f"{low} to {high}" + (f" or {words[0]} to {words[-1]}" if words else "")
            raise ValueError(
                f"{part!r} is no {name}; write *, {choices}, a rising range a-b, a step */n, or a list with commas"
            )
        numbers.update(range(ends[0], ends[-1] + 1, _whole(step) if slash else 1))
    return numbers


def _whole(digits: str) -> int:
    """The number that some digits stand for; -1 for anything else."""
    return int(digits) if re.fullmatch("[0-9]{1,3}", digits) else -1


def _explain(problem: Mapping[str, Any]) -> str:
    # Where a key of a table is wrong, pydantic says so in a part of its own.
    location = [part for part in problem["loc"] if part != "[key]"]
    key = ".".join(map(_bare_key, location))
    if not key:
        return without_password(problem["msg"].removeprefix("Value error, "))
    name, value = str(location[-1]), problem["input"]
    if problem["type"] == "extra_forbidden":
        mend = _closest(name, _names_beside(problem["loc"]))
        return f"{key} = {_mask(value, name + mend)}: no such setting; {mend}"
    complaint = problem["msg"].removeprefix("Value error, ")
    complaint = complaint[0].lower() + complaint[1:]
    return f"{key} = {_mask(value, name)}: {complaint}; correct it in {DEFAULT_FILE} or in the environment"


def _mask(value: Any, name: str) -> str:
    if re.search("token|password|secret|key|webhook", name, re.IGNORECASE):
        return "*****"
    if isinstance(value, Mapping):
        return f"{{{', '.join(map(_bare_key, value))}}}"
    if isinstance(value, list):
        return f"[{', '.join(_mask(inner, name) for inner in value)}]"
    return without_password(repr(value))


def _bare_key(key: Any) -> str:
    """A key without what a forgotten colon or space has made part of it."""
    return re.split(r"[\s=:]", str(key))[0]


def _names_beside(location: tuple[Any, ...]) -> list[str]:
    section: Any = Settings
    for part in location[:-1]:
        section = section.model_fields[part].annotation
        if not hasattr(section, "model_fields"):
            # A table or list of sections.
            (section,) = (inner for inner in get_args(section) if hasattr(inner, "model_fields"))
            return list(section.model_fields)
    return _names() if section is Settings else list(section.model_fields)


def _closest(name: Any, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {matches[0]}?" if matches else f"choose from {', '.join(known)}"
