"""A model that classifies images, from any source: a run, a checkpoint, published weights, each of our exports.

Shapes: B batch, C classes, K classes returned, H W pixels.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.interop import export as exporting
from pipeline.interop import trained_model
from pipeline.interop.export import Forward
from pipeline.interop.model_files import graph_of
from pipeline.interop.native import DESCRIPTION
from pipeline.interop.trained_model import Description, Named
from pipeline.model.preprocess import normalise
from pipeline.model.vit import VisionTransformer


@dataclass(frozen=True)
class Classifier:
    """``forward`` on ``device`` in ``dtype``, with its pre- and postprocessing."""

    known: Description
    forward: Forward
    device: torch.device
    dtype: torch.dtype
    model: VisionTransformer | None  # the module behind forward; None for a graph (ONNX, torch.export)

    @torch.inference_mode()
    def classify(self, images_BHWC: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """uint8 images as image_files.py prepares them -> the likeliest classes_BK and their probabilities_BK.

        Raises UserError if the model's outputs are non-finite.
        """
        x_BCHW = normalise(images_BHWC.to(self.device, non_blocking=True), self.dtype, self.known.model)
        logits_BC = self.forward(x_BCHW).float()
        scores_BC = logits_BC.sigmoid() if self.known.loss == "sigmoid" else logits_BC.softmax(-1)
        if scores_BC.isnan().any():
            raise UserError("MODEL's outputs are non-finite: its training has diverged; name another checkpoint")
        probabilities_BK, classes_BK = scores_BC.topk(min(top, logits_BC.shape[1]))
        return classes_BK.cpu(), probabilities_BK.cpu()


def open_classifier(
    path: Path, *, device: torch.device, dtype: torch.dtype, average: bool = False, trust_code: bool = False
) -> Classifier:
    """``trust_code``: load a torch.export archive, which can run code. Raises UserError."""
    graph = graph_of(path)
    if graph is None:
        found = trained_model.load(path, average=average)
        model = exporting.build(found).to(device, dtype)
        return Classifier(found.description, model, device, dtype, model)
    if average or dtype != torch.float32:
        raise UserError(
            f"MODEL {str(graph)!r} is a graph of float32 weights: leave out --average and --dtype, or name the run"
        )
    if not (graph.parent / DESCRIPTION).is_file():
        raise UserError(
            f"MODEL {str(graph)!r} has no {DESCRIPTION} beside it, which names its classes: name a folder written "
            "by vit export"
        )
    known = trained_model.read_description(graph.parent)
    if graph.suffix == ".onnx":
        return Classifier(known, exporting.open_onnx(graph, known, device), device, dtype, None)
    if not trust_code:
        raise UserError(
            f"MODEL {str(graph)!r} is a torch.export archive, which can run any code when it is loaded: name the run, "
            "or an export to safetensors, timm, huggingface, npz or onnx; or add --trust-code if you trust the file"
        )
    print(f"warning: --trust-code: {str(graph)!r} may run any code that it contains", file=sys.stderr, flush=True)
    cpu = torch.device("cpu")  # the graph was traced there
    return Classifier(known, exporting.open_torch(graph, known), cpu, dtype, None)


def with_classes(classifier: Classifier, classes: tuple[Named, ...]) -> Classifier:
    """The same classifier with other class names."""
    return replace(classifier, known=replace(classifier.known, classes=classes))
