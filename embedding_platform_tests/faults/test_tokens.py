"""Tokens that are wrong, or hold odd characters: refused in one line that does not show them."""

from pathlib import Path

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform_tests.milvus_server import MilvusServer

ODD = ["root:p@ss:w0rd/with?all#of%25it", "root:pässwörd-秘密", "root:two\nlines", "no colon at all", "root: "]


@pytest.mark.parametrize("token", ODD)
def test_an_odd_token_reaches_milvus_or_is_refused_without_being_shown(
    tmp_path: Path, token: str, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = str(tmp_path / "milvus")
    connect(directory, token).list_collections(timeout=60)
    close_directory(directory)
    with pytest.raises(PlatformError) as failure:
        connect("http://127.0.0.1:1", token, timeout_seconds=1)
    said = str(failure.value) + "".join(capfd.readouterr())
    assert "\n" not in str(failure.value)
    secret = token.partition(":")[2] or token
    assert not secret.strip() or secret not in said


@pytest.mark.server
@pytest.mark.parametrize("token", ODD)
def test_a_server_refuses_an_odd_token_in_one_line(milvus_server: MilvusServer, token: str) -> None:
    with pytest.raises(PlatformError, match="refuses the token") as failure:
        connect(milvus_server.uri, token, timeout_seconds=120)
    assert "\n" not in str(failure.value)
    secret = token.partition(":")[2] or token
    assert not secret.strip() or secret not in str(failure.value)
