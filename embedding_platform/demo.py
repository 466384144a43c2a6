"""The demo: sample media, the whole asset graph, and one search for each modality."""

import os
from collections.abc import Sequence

from embedding_platform import terminal
from embedding_platform.errors import PlatformError
from embedding_platform.inference.query import text_query
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.schema import alias_name
from embedding_platform.platform import Platform
from embedding_platform.runs import SourceRun
from embedding_platform.search import Hit, Searcher
from embedding_platform.spaces import Space
from embedding_platform.starter.sample_media import SAMPLE_QUESTIONS, make_sample_media, make_sample_queries

MARK = ".sample-media"
"""Hidden file in a media root that the demo made; what people change there afterwards stays."""


def run_demo(platform: Platform) -> bool:
    """Make the sample media once, run every source, print what is published and what searches find.

    Returns whether every run succeeded.

    Raises:
        PlatformError: if the media root holds somebody's own media.
    """
    made = make_media_once(platform.settings.media_url)
    told = f"{made} sample files made in" if made else "sample media are already in"
    terminal.CONSOLE.print(f"{told} {platform.settings.media_url}", soft_wrap=True)
    runs = terminal.run_with_progress(platform)
    terminal.print_spaces([_summary(platform, space, runs) for space in platform.spaces])
    for title, hits in sample_answers(platform):
        terminal.print_hits(title, hits)
    return all(run.succeeded for run in runs)


def make_media_once(media_root: str) -> int:
    """Sample media in an empty or absent folder; returns the number of files made, 0 if they were there.

    Raises:
        PlatformError: if the folder holds anything else.
    """
    mark = os.path.join(media_root, MARK)
    if os.path.exists(mark):
        return 0
    if "://" in media_root or (os.path.isdir(media_root) and os.listdir(media_root)):
        raise PlatformError(
            f"media_root {media_root} holds media of its own; the demo wants an empty folder: "
            "run `embedding-platform run` for yours, or set EMBEDDING_PLATFORM_MEDIA_ROOT to a new folder"
        )
    made = make_sample_media(media_root)
    with open(mark, "w", encoding="utf-8") as file:
        file.write("Made by the demo of embedding_platform.\n")
    return made


def sample_answers(platform: Platform) -> list[tuple[str, list[Hit]]]:
    """For each modality the hits of its first sample question that a space can encode, with a title."""
    queries = str(platform.settings.base / ".embedding_platform" / "queries")
    make_sample_queries(queries)
    searcher = Searcher(platform)
    answers: list[tuple[str, list[Hit]]] = []
    for modality in platform.modalities:
        spaces = [space for space in platform.spaces if space.modality == modality]
        for question in SAMPLE_QUESTIONS:
            if question.modality != modality:
                continue
            is_text = question.kind == "text"
            query = text_query(question.query) if is_text else searcher.file_query(f"{queries}/{question.query}")
            able = [space for space in spaces if query.role in space.model.roles]
            if able:
                key = able[0].key
                answers.append((f"{key}: {query.name}", searcher.search(query, key, limit=3)))
                break
    return answers


def _summary(platform: Platform, space: Space, runs: Sequence[SourceRun]) -> tuple[str, ...]:
    own = [run for run in runs if run.modality == space.modality]
    collections = [run.metadata.get(f"{space.key}/collection", {}) for run in own]
    vectors = [run.metadata.get(f"{space.key}/embeddings", {}) for run in own]
    recalls = [float(metadata["recall_at_10"]) for metadata in collections if "recall_at_10" in metadata]  # type: ignore[arg-type]
    rows = [int(metadata.get("dagster/partition_row_count", 0)) for metadata in collections]  # type: ignore[call-overload]
    contents = [int(metadata.get("dagster/partition_row_count", 0)) for metadata in vectors]  # type: ignore[call-overload]
    return (
        space.key,
        str(sum(rows)),
        str(sum(contents)),
        str(space.model.dimension),
        str(sum(bool(count) for count in rows)),
        f"{min(recalls):.3f}" if recalls else "",
        space.index.type,
        alias_target(platform.milvus, alias_name(space.key)) or "not published",
    )
