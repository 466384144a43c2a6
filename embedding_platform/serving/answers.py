"""What the API answers with: plain data, described well enough to make the OpenAPI document of."""

from typing import Any
from urllib.parse import quote, urlencode

from pydantic import BaseModel, Field

from embedding_platform.search import Hit, SearchableSpace
from embedding_platform.serving.media import is_shown

MODALITIES_OF_PREVIEWS = ("image", "image_text", "audio", "video")


class Problem(BaseModel):
    """What every answer but a good one holds."""

    error: str = Field(description="what is wrong and the mend, in one line")


class SpaceAnswer(BaseModel):
    """A published space, and what it can be asked."""

    key: str = Field(examples=["image/clip"])
    modality: str
    takes: list[str] = Field(description="roles of queries that the space's model encodes: text, image, audio, video")
    holds: list[str] = Field(description="roles of its rows")
    sources: list[str]
    collection: str
    model: str
    metric: str
    hybrid: bool = Field(description="whether words and vectors can be searched together")


class Links(BaseModel):
    """Where a hit leads; paths on this server, and the run's page in the Dagster web UI."""

    media: str
    preview: str | None = Field(description="a small picture; None for text")
    passage: str | None = Field(description="the passage in its document; None for other media")
    more_like: str
    trace: str
    run: str


class HitAnswer(BaseModel):
    """One row found."""

    space: str
    id: str
    score: float = Field(description="what hits are ordered by; compares only inside one space and query")
    vector_score: float = Field(description="as Milvus gives it: cosine, inner product or squared distance")
    source: str
    path: str
    role: str
    where: str = Field(description='place in the file, for people: "seconds 0.00-30.00"')
    start: float = Field(description="characters or seconds; 0 for a whole file")
    end: float
    text: str = Field(description='the passage or caption, "" for other media')
    attributes: dict[str, Any]
    content_hash: str
    model: str
    run_id: str
    embedded_at: str
    shown: bool = Field(description="whether browsers show or play the file by themselves")
    links: Links


class SpaceHits(BaseModel):
    """The hits of one space, best first; or why it could not answer."""

    space: str
    modality: str
    hits: list[HitAnswer]
    milliseconds: float
    error: str | None = None


class SearchAnswer(BaseModel):
    """What was asked, and the hits of each space."""

    query: str
    spaces: list[SpaceHits]


class PassageAnswer(BaseModel):
    """A passage between what stands around it; both are empty where the document has changed since."""

    source: str
    path: str
    where: str
    before: str
    text: str
    after: str
    changed: bool


class Health(BaseModel):
    """That the server and its Milvus answer."""

    status: str


def space_answer(space: SearchableSpace, sources: list[str]) -> SpaceAnswer:
    """A space as the API tells of it."""
    return SpaceAnswer(
        key=space.key,
        modality=space.modality,
        takes=list(space.roles),
        holds=list(space.holds),
        sources=sources,
        collection=space.collection,
        model=space.model,
        metric=space.metric,
        hybrid=space.hybrid,
    )


def hit_answer(hit: Hit, dagster_url: str, words: str = "") -> HitAnswer:
    """A hit as the API tells of it; `words` are marked in its passage."""
    modality = hit.space.partition("/")[0]
    row = f"{hit.space}/{hit.id}"
    marking = f"?{urlencode({'words': words})}" if words else ""
    links = Links(
        media=f"/media/{row}",
        preview=f"/preview/{row}?v={hit.content_hash[:16]}" if modality in MODALITIES_OF_PREVIEWS else None,
        passage=f"/passage/{row}{marking}" if modality == "text" else None,
        more_like=f"/more-like/{row}",
        trace=f"/trace/{hit.id}",
        run=run_page(dagster_url, hit.run_id),
    )
    own = {name: getattr(hit, name) for name in HitAnswer.model_fields if name not in ("links", "shown")}
    return HitAnswer(**own, shown=is_shown(hit.path), links=links)


def run_page(dagster_url: str, run_id: str) -> str:
    """The page of a run in the Dagster web UI."""
    return f"{dagster_url.rstrip('/')}/runs/{quote(run_id, safe='')}"
