"""The platform behind the routes: searches a few at a time, and rows with their files, previews and passages."""

import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from embedding_platform.errors import MilvusError, PlatformError, RejectedError
from embedding_platform.inference.golden import golden_contents
from embedding_platform.inference.query import Query, read_query, text_query
from embedding_platform.lineage import RowTrace, trace_row
from embedding_platform.media.listing import joined_name
from embedding_platform.media.text import document_of
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.connection import explaining
from embedding_platform.milvus.query import get_rows
from embedding_platform.milvus.schema import alias_name
from embedding_platform.platform import Platform
from embedding_platform.search import Filter, Hit, Searcher
from embedding_platform.serving.answers import PassageAnswer, SearchAnswer, SpaceAnswer, SpaceHits, hit_answer, space_answer
from embedding_platform.serving.media import OpenFile, open_inside
from embedding_platform.serving.passages import in_document
from embedding_platform.serving.refusal import Refusal
