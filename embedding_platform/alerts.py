"""Telling an address of the web, where the settings name one, what somebody should see to."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping

from embedding_platform.errors import PlatformError


def post(webhook: str, content: Mapping[str, str], timeout_seconds: float) -> None:
    """POST `content` as JSON. The address may hold a secret, and is in no error.

    Raises:
        PlatformError: if it is not taken in time.
    """
    body = json.dumps(dict(content), ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "embedding-platform"}
    try:
        request = urllib.request.Request(webhook, data=body, headers=headers, method="POST")
        with urllib.request.build_opener(_WithoutRedirects).open(request, timeout=timeout_seconds):
            pass
    except urllib.error.HTTPError as error:
        reason = f"it answered {error.code}"
    except urllib.error.URLError as error:
        reason = type(error.reason).__name__ if isinstance(error.reason, OSError) else "no such address"
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = type(error).__name__
    else:
        return
    raise PlatformError(f"the webhook did not take an alert: {reason}; see to it, or correct alerts.webhook")


class _WithoutRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for the refusal that it is: followed, it would lose what was posted."""

    def redirect_request(self, *asked: object) -> None:
        """None, which makes an error of it."""
