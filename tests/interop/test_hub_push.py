"""Exports that are pushed to the Hub: what is there then loads from there, with its card; refusals upload nothing."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from jobs import export
from pipeline.config.schema import ModelConfig
from pipeline.core.errors import UserError
from pipeline.interop import export as exporting
from pipeline.interop import hub_models, hub_push, trained_model
from pipeline.interop.hub_push import check_account, check_contents
from pipeline.interop.model_card import _named, front_matter
from pipeline.runs.suite_results import Result, write
from tests.helpers.hub_here import lead_to
from tests.helpers.hub_server import HubServer
from tests.helpers.mistakes import mistake
from tests.helpers.runs import make_run, run_export

TOKEN = "hf_letter"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub 2.4's upload


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.users |= {TOKEN: "me", "hf_reader": "reader"}
        server.writers.add("me")
        lead_to(monkeypatch, server, tmp_path / "home", TOKEN)
        yield server


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize("form", hub_push.FORMS)
def test_what_is_pushed_gives_the_runs_logits_when_pulled(
    server: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: pytest.LogCaptureFixture,
    form: str,
) -> None:
    model = make_run(tmp_path / "run", ModelConfig("tiny", 32), resize="central")
    result = Result("a", "ImageNet-A", {"samples": 7500.0, "top1": 0.3125}, "key", False, 7, False)
    write(tmp_path / "run" / "evaluations", result)
    out = tmp_path / "out"
    run_export(
        monkeypatch, tmp_path / "run", out, "--format", form, "--push", "me/birds", "--private", "--license", "mit"
    )
    printed = capsys.readouterr()
    repository = server.repositories["models", "me/birds"]
    assert repository.private
    assert len(repository.commits) == 2, "the Hub's own first commit, and one of ours"
    assert json.loads(printed.out.splitlines()[-1])["pushed"] == f"{server.endpoint}/me/birds/commit/{repository.head}"
    assert set(repository.commits[repository.head]) == {".gitattributes", *(path.name for path in out.iterdir())}
    (line,) = [text for text in said.messages if text.startswith("uploading")]
    assert line.startswith(f"uploading to {server.endpoint}/me/birds (new, private): README.md (")
    assert TOKEN not in printed.out + printed.err + said.text
    card = repository.commits[repository.head]["README.md"]
    assert isinstance(card, bytes)
    front = yaml.safe_load(card.decode().split("---\n")[1])
    assert front["license"] == "mit"
    assert front["library_name"] == {"timm": "timm", "huggingface": "transformers"}[form]
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.3125
    pulled = exporting.build(trained_model.load(hub_models.resolved(Path("hf://me/birds"))))
    x_BCHW = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        assert float((pulled(x_BCHW) - model(x_BCHW)).abs().max()) <= 1e-5
    # again: a new commit of the same files
    again = tmp_path / "again"
    run_export(monkeypatch, tmp_path / "run", again, "--format", form, "--push", "me/birds")
    assert "(a new commit, private)" in said.text
    assert len(repository.commits) == 3


def test_refusals_come_before_the_export(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    server.add("models", "me/other", {".gitattributes": b"", "pytorch_model.bin": b"x", "README.md": b""})
    server.add("models", "me/public", {".gitattributes": b"", "README.md": b""})
    at = server.endpoint
    for token, words, expected in (
        (TOKEN, ["--push", "birds"], "--push 'birds' is not a repository name: write OWNER/NAME"),
        (TOKEN, ["--push", "me/birds", "--format", "onnx"], "choose --format timm or huggingface for --push"),
        (TOKEN, ["--private"], "--private has no effect without --push"),
        (TOKEN, ["--license", "My Own"], "--license 'My Own' is not one of the Hub's names"),
        (TOKEN, ["--push", "you/birds"], "you is neither you nor an organization of yours: write one of me"),
        (TOKEN, ["--push", "me/other"], "holds other files (pytorch_model.bin): name a new repository"),
        (TOKEN, ["--push", "me/public", "--private"], "exists and is public, so --private has no effect"),
        ("", ["--push", "me/birds"], f"needs a login: make a token with write access at {at}/settings/tokens"),
        ("hf_old", ["--push", "me/birds"], f"your token is not valid: make another one at {at}/settings/tokens"),
    ):  # fmt: skip
        monkeypatch.setenv("HF_TOKEN", token)
        line = mistake(capsys, monkeypatch, "jobs.export", tmp_path / "run", tmp_path / "out", *words)
        assert expected in line, line
        assert not token or token not in line
        assert not (tmp_path / "out").exists()
    assert server.count("api", "create", "POST") == server.count("api", "commit", "POST") == 0


def test_a_refused_upload_leaves_the_export_and_says_how_to_send_it(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    out = tmp_path / "out"
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "run"), str(out), "--push", "reader/birds"])
    with pytest.raises(UserError) as caught:
        export.main()
    text = str(caught.value)
    assert f"your token may not do this in reader/birds: make one that may at {server.endpoint}/settings/tokens" in text
    assert text.endswith(f"upload it later with 'hf upload reader/birds {out}'")
    assert trained_model.load(out).weights
    assert ("models", "reader/birds") not in server.repositories
    capsys.readouterr()


def test_a_storage_that_fails_is_one_line(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    server.fail("storage", ["expired"])
    with pytest.raises(UserError, match="your token may not do this in me/birds") as caught:
        run_export(monkeypatch, tmp_path / "run", tmp_path / "out", "--push", "me/birds")
    assert "Signature" not in str(caught.value)
    head = server.repositories["models", "me/birds"]
    assert set(head.commits[head.head]) == {".gitattributes"}


def test_accounts_and_contents() -> None:
    check_account("--push", "we", {"name": "me", "orgs": [{"name": "we"}], "auth": {"accessToken": {"role": "write"}}})
    with pytest.raises(UserError, match="your token may only read: make one with write access at"):
        check_account("--push", "me", {"name": "me", "auth": {"accessToken": {"role": "read"}}})
    check_contents("--push", [".gitattributes", "README.md", "model.safetensors"], "PAGE")
    with pytest.raises(UserError, match=r"holds other files \(a, b, c, \.\.\.\): .* delete them at PAGE/tree/main"):
        check_contents("--push", ["d", "c", "b", "a"], "PAGE")


def test_the_card_names_the_hubs_parent_and_hides_paths() -> None:
    lineage = {"weights": "hf://timm/it@abc", "sha256": "12"}
    front = yaml.safe_load(front_matter("ViT", "timm", (), parent=lineage))
    assert (front["base_model"], front["base_model_relation"]) == ("timm/it", "finetune")
    assert "base_model" not in front_matter("ViT", "timm", (), parent={"weights": "/home/me/B_16.npz"})
    assert _named(lineage, ("weights",)) == lineage
    assert _named({"parent": "hf-hub:timm/it"}, ("parent",)) == {"parent": "hf-hub:timm/it"}
    assert _named({"weights": "/home/hf-hub:x/y.npz"}, ("weights",)) == {"weights": "y.npz"}
