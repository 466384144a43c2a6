"""Tokens that are wrong, or hold odd characters: refused in one line that does not show them."""

import os
from pathlib import Path

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform_tests.milvus.conftest import SERVER_VARIABLE, TOKEN_VARIABLE

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
def test_a_server_refuses_an_odd_token_in_one_line(token: str) -> None:
    uri = os.environ.get(SERVER_VARIABLE, "")
    if not uri or not os.environ.get(TOKEN_VARIABLE):
        pytest.skip(f"{SERVER_VARIABLE} and {TOKEN_VARIABLE} name no Milvus server that asks for a token")
    with pytest.raises(PlatformError, match="refuses the token") as failure:
        connect(uri, token, timeout_seconds=10)
    assert "\n" not in str(failure.value)
    assert (token.partition(":")[2] or token) not in str(failure.value)
