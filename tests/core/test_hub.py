"""The Hub's errors, as huggingface_hub raises them for a server's answers, become one line with the remedy."""

import httpx2
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import hf_raise_for_status, validate_repo_id

from pipeline.core import hub
from pipeline.core.errors import UserError

SIGNED = "https://cdn.invalid/file?Signature=topsecret"


def answer(status: int, code: str = "", message: str = "", url: str = "") -> httpx2.Response:
    headers = {name: value for name, value in (("X-Error-Code", code), ("X-Error-Message", message)) if value}
    request = httpx2.Request("GET", url or f"{hub.endpoint()}/api/models/me/it/revision/main")
    return httpx2.Response(status, headers=headers, request=request)


@pytest.mark.parametrize(
    ("token", "response", "words"),
    [
        ("", answer(401, "GatedRepo"), "me/it is gated: accept its terms at {page} and log in"),
        ("t", answer(403, "GatedRepo"), "your token has no access: ask for it at {page}"),
        (
            "",
            answer(401, "RepoNotFound"),
            "doesn't exist or is private: check the name at {page}; if it is",
        ),
        ("t", answer(404, "RepoNotFound"), "use a token of an account that may read it"),
        (
            "",
            answer(404, "RevisionNotFound"),
            "no such revision: choose a branch, tag or commit of {page}",
        ),
        ("t", answer(401, message="Invalid credentials in Authorization header"), "your token is not valid: make"),
        ("t", answer(403, message="no"), "your token may not do this in me/it: make one that may at"),
        ("", answer(429), "answers 429 (too many requests): try again in a few minutes"),
        ("", answer(502), "answers 502: try again later"),
        ("", answer(403, url=SIGNED), "may not do this in me/it"),
        ("", answer(418, url=SIGNED), "answers 418 (no reason given): look at {page}"),
    ],
)
def test_an_answer_is_one_line(
    token: str, response: httpx2.Response, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(UserError) as caught, hub.one_line("MODEL 'hf://me/it'", "me/it"):
        hf_raise_for_status(response)
    text = str(caught.value)
    assert text.startswith("MODEL 'hf://me/it': ")
    assert words.format(page=hub.page("me/it")) in text
    assert "\n" not in text
    assert "topsecret" not in text


def test_no_network_and_offline_are_told_apart_from_answers() -> None:
    for error, words in (
        (httpx2.ConnectError("[Errno 111] Connection refused"), "can't be reached ([Errno 111] Connection refused)"),
        (httpx2.ReadTimeout(""), "can't be reached (ReadTimeout)"),
        (OfflineModeIsEnabled("..."), "HF_HUB_OFFLINE is set: unset it"),
    ):
        assert hub.unreachable(error)
        with pytest.raises(UserError) as caught, hub.one_line("MODEL", "me/it", "dataset"):
            raise error
        assert words in str(caught.value)
    assert not hub.unreachable(OSError("disk"))
    assert hub.page("me/it", "dataset").endswith("/datasets/me/it")


def test_what_stands_behind_an_error_of_the_cache_is_named() -> None:
    for cause, words in (
        (httpx2.ConnectError("[Errno 111] Connection refused"), "can't be reached ([Errno 111] Connection refused)"),
        (None, "doesn't answer like the Hub: check HF_ENDPOINT"),
    ):
        with pytest.raises(UserError) as caught, hub.one_line("MODEL", "me/it"):
            raise LocalEntryNotFoundError("An error happened\nwhile ...") from cause
        assert words in str(caught.value)
    with pytest.raises(UserError, match="is not a valid name on the Hub"), hub.one_line("MODEL", "me/a--b"):
        validate_repo_id("me/a--b")


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), hub.one_line("MODEL", "me/it"):
        raise KeyError("x")
