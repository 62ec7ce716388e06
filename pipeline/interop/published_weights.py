"""Published ViT weights by short names, for ``vit fetch``: where they are, what they are, and how good they are.

Sizes are those that the repositories' pages list (huggingface.co/OWNER/NAME/tree/main, 2024 to 2026); of an .npz, those
in MiB of the table of AugReg models in the README of github.com/google-research/vision_transformer, which lists neither
l16-npz nor l32-npz. No hash is written here, as none could be verified when this was written: a download is checked
against the one that its server states (the Hub: sha256; Google's storage: md5). So the server is trusted for the first
download; SHA256SUMS beside the files records what was received.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from pipeline.config.published import FINETUNED, Figure
from pipeline.core import hub, hub_pace
from pipeline.core.download import STALL, Stated, UnreachableError
from pipeline.core.errors import UserError

_STORAGE = "https://storage.googleapis.com/vit_models"
FILES = ("config.json", "model.safetensors")  # of a model on the Hub


@dataclass(frozen=True)
class Weights:
    what: str  # model, recipe, and the images it was trained on last
    source: str  # OWNER/NAME on the Hub, or the URL of an .npz
    size: str = ""  # of the weights, as the page lists it
    figure: Figure | None = None  # of these weights, or after fine-tuning them

    @property
    def on_hub(self) -> bool:
        return "://" not in self.source

    @property
    def files(self) -> tuple[str, ...]:
        return FILES if self.on_hub else (self.source.rpartition("/")[2],)

    def url(self, name: str, revision: str = "main") -> str:
        """The URL of one of its files."""
        return f"{hub.page(self.source)}/resolve/{revision}/{name}" if self.on_hub else self.source


def _figure(recipe: str, by: str) -> Figure:
    return next(one for one in FINETUNED if (one.recipe, one.by) == (recipe, by))


_IN21K = "ImageNet-21K"
_IN1K = "ImageNet-2012"
_B16, _L16, _L32 = (_figure(recipe, "timm") for recipe in ("b16", "l16", "l32"))
_B32 = next(one for one in FINETUNED if one.parent == "b32")  # light1, as Google's file; timm's has no such figure
WEIGHTS: Mapping[str, Weights] = MappingProxyType(
    {
        "b16": Weights(f"B/16 AugReg, {_IN21K}", "timm/vit_base_patch16_224.augreg_in21k", "410 MB", _B16),
        "b32": Weights(f"B/32 AugReg, {_IN21K}", "timm/vit_base_patch32_224.augreg_in21k", "417 MB"),
        "l16": Weights(f"L/16 AugReg, {_IN21K}", "timm/vit_large_patch16_224.augreg_in21k", "1.3 GB", _L16),
        "l32": Weights(f"L/32 ViT paper, {_IN21K}", "timm/vit_large_patch32_224.orig_in21k", "1.22 GB", _L32),
        "b16-in1k": Weights(f"B/16 AugReg, {_IN1K}", "timm/vit_base_patch16_384.augreg_in21k_ft_in1k", "347 MB", _B16),
        "l16-in1k": Weights(
            f"L/16 AugReg, {_IN1K}", "timm/vit_large_patch16_384.augreg_in21k_ft_in1k", "1.22 GB", _L16
        ),
        "l32-in1k": Weights(
            f"L/32 ViT paper, {_IN1K}", "timm/vit_large_patch32_384.orig_in21k_ft_in1k", "1.23 GB", _L32
        ),
        "b16-npz": Weights(
            f"B/16 AugReg, {_IN21K}",
            f"{_STORAGE}/augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz",
            "410 MB",
            figure=_B16,
        ),
        "b32-npz": Weights(
            f"B/32 AugReg, {_IN21K}",
            f"{_STORAGE}/augreg/B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0.npz",
            "417 MB",
            figure=_B32,
        ),
        "l16-npz": Weights(
            f"L/16 AugReg, {_IN21K}",
            f"{_STORAGE}/augreg/L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1.npz",
            figure=_L16,
        ),
        "l32-npz": Weights(f"L/32 ViT paper, {_IN21K}", f"{_STORAGE}/imagenet21k/ViT-L_32.npz", figure=_L32),
    }
)


def stated(weights: Weights, name: str, what: str) -> Stated:
    """Ask the server what it states about a file. Raises UserError, UnreachableError. ``what``: for messages."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError

    url = weights.url(name)
    try:
        if weights.on_hub:
            found = hub.ask(lambda: get_hf_file_metadata(url), url)
            etag = found.etag or ""  # of a large file its sha256, of a small one git's hash
            pinned = weights.url(name, found.commit_hash or "main")
            return Stated(pinned, found.size or 0, "sha256" if len(etag) == 64 else "", etag)
        answer = hub.ask(lambda: _head(url), url)
    except Exception as error:
        if hub.unreachable(error):
            server = "{0.scheme}://{0.netloc}".format(urlsplit(url))
            raise UnreachableError(hub.reason(error, server)) from error
        if not weights.on_hub and isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            remedy = "try again later" if hub_pace.is_busy(status) else "choose other weights ('vit fetch' lists them)"
            raise UserError(f"{what}: {url} answers {status}: {remedy}") from error
        with hub.one_line(what, weights.source):
            raise
    hashes = dict(one.strip().split("=", 1) for one in answer.headers.get("x-goog-hash", "").split(",") if "=" in one)
    md5 = base64.b64decode(hashes.get("md5", "")).hex()
    return Stated(url, int(answer.headers["Content-Length"]), "md5" if md5 else "", md5)


def _head(url: str) -> Any:
    """The answer to a HEAD request. Raises huggingface_hub's HfHubHTTPError for an error status."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # public, and imported lazily

    answer = get_session().head(url, timeout=STALL)
    hf_raise_for_status(answer)
    return answer
