"""jobs.export: what it writes reads back to the checkpoint's logits, and what it refuses leaves nothing behind."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs import export
from pipeline.checkpoint import FORMAT_VERSION, Meta
from pipeline.cli import UserError
from pipeline.config import ModelConfig, to_dict
from pipeline.files import xxh3_128
from pipeline.interop import load_weights
from pipeline.model import VisionTransformer
from pipeline.recipes import tiny
from tests.test_model import random_model


def make_run(run: Path, model_config: ModelConfig) -> VisionTransformer:
    """A run folder with one checkpoint of random weights, in the files that training writes."""
    model = random_model(model_config).eval()
    checkpoint = run / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    path = checkpoint / "state-000.safetensors"
    save_file({f"param/{name}": tensor for name, tensor in model.state_dict().items()}, path)
    config = to_dict(replace(tiny(), model=model_config))
    files = {path.name: {"bytes": path.stat().st_size, "xxh3_128": xxh3_128(path)}}
    meta = Meta(FORMAT_VERSION, 7, 70, 7, config, 10, "c", "digest-of-data", 1, files, 0, {"eval/top1": 0.5})
    (checkpoint / "meta.json").write_text(json.dumps(asdict(meta)))
    (run / "classes.json").write_text(json.dumps([{"wnid": f"n{i}", "name": f"name {i}"} for i in range(10)]))
    (run / "run.json").write_text(json.dumps({"parent": {"run_dir": "the-parent"}}))
    return model


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr("sys.argv", ["export", *map(str, args)])
    return export.main()


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("form", ["timm", "huggingface", "npz"])
def test_the_export_has_the_checkpoints_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, size: int
) -> None:
    model = make_run(tmp_path / "run", ModelConfig("tiny", size))
    out = tmp_path / "out"
    call(monkeypatch, tmp_path / "run", out, "--format", form)
    config, state, _ = load_weights(out / "model.npz" if form == "npz" else out)
    again = VisionTransformer(config, 10).eval()
    again.load_state_dict(state)
    x_BCHW = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(again(x_BCHW), model(x_BCHW), rtol=0, atol=1e-5)
    card = (out / "README.md").read_text()
    assert "eval/top1: 0.5000" in card
    assert "digest-of-data" in card
    assert "the-parent" in card


def test_what_is_refused_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32, pre_logits=True))
    with pytest.raises(UserError, match="pre_logits"):
        call(monkeypatch, tmp_path / "run", tmp_path / "out", "--format", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        call(monkeypatch, tmp_path / "run", tmp_path / "out", "--format", "npz")
    assert not list((tmp_path / "out").iterdir())


def test_logits_that_differ_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The .npz has no room for the GELU's kind."""
    config, _, _ = _read_back(tmp_path, monkeypatch)
    other = "tanh" if config.gelu == "exact" else "exact"
    make_run(tmp_path / "other", ModelConfig("tiny", 32, gelu=other))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="differ"):
        call(monkeypatch, tmp_path / "other", tmp_path / "refused", "--format", "npz")
    assert not (tmp_path / "refused").exists()


def _read_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModelConfig, object, object]:
    make_run(folder / "run", ModelConfig("tiny", 32))
    call(monkeypatch, folder / "run", folder / "npz", "--format", "npz")
    return load_weights(folder / "npz" / "model.npz")
