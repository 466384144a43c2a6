"""Images with captions: one image segment, and one text segment per caption."""

from collections.abc import Iterator, Sequence
from typing import Any

from embedding_platform.media import image
from embedding_platform.media.cutting import Cutting
from embedding_platform.media.limits import USUAL_LIMITS
from embedding_platform.records import Content, Item, Segment, digest, segment_id
from embedding_platform.settings import DecodingSettings

CODE_VERSION = f"1+image-{image.CODE_VERSION}"


def probe(uri: str, limits: DecodingSettings = USUAL_LIMITS) -> dict[str, Any]:
    """The attributes of the image; see `image.probe`."""
    return image.probe(uri, limits)


def cut(source: str, item: Item, cutting: Cutting) -> list[Segment]:
    """The image's segment, then its captions' in their order.

    Raises:
        RejectedError: if the image cannot be decoded.
    """
    captions = [
        Segment(
            segment_id=segment_id(source, item.path, "text", position),
            path=item.path,
            uri=item.uri,
            item_version=item.version,
            role="text",
            position=position,
            start=0.0,
            end=0.0,
            text=caption,
            content_hash=digest("text", caption),
        )
        for position, caption in enumerate(item.captions)
    ]
    return [*image.cut(source, item, cutting), *captions]


def read(segments: Sequence[Segment], limits: DecodingSettings = USUAL_LIMITS) -> Iterator[Content]:
    """Yield the RGB image or the caption of each segment."""
    for segment in segments:
        yield image.open_image(segment.uri, limits) if segment.text is None else segment.text


def parameters(cutting: Cutting) -> tuple[str, ...]:
    """No parameter of `cutting` concerns pairs: a caption is one segment whatever its length."""
    return ()
