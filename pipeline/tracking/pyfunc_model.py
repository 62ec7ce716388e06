"""The model as MLflow loads it: image bytes in, the likeliest classes out. MLflow runs this file to load the model.

Shapes: B batch, C classes, H height, W width, K classes returned.
"""

import base64
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from pipeline.config.schema import ModelConfig
from pipeline.config.serialize import from_dict
from pipeline.inference.image_files import prepared
from pipeline.model.preprocess import normalise
from pipeline.model.vit import VisionTransformer

TOP = 5  # classes returned an image
CHUNK = 64  # images a forward pass


class ImageClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    """Artifacts: ``model``, a folder with weights.safetensors and model.json."""

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["model"])
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.classes = facts["classes"]  # [{"wnid": ..., "name": ...}, ...] in index order
        self.image_size = facts["model"]["image_size"]
        self.resize = facts["resize"]  # as the run was evaluated
        self.upright = facts.get("upright", False)  # as it was trained
        self.sigmoid = facts["loss"] == "sigmoid"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = VisionTransformer(from_dict(ModelConfig, facts["model"]), len(self.classes))
        self.model.load_state_dict(load_file(folder / "weights.safetensors"))
        self.model.eval().to(self.device)

    def predict(self, context: Any, model_input: pd.DataFrame) -> pd.DataFrame:  # noqa: ARG002  (MLflow passes it)
        """One row an image. The column ``image`` holds an encoded image's bytes (or their base64 text), in any format
        that jobs.predict reads. Raises MlflowException with the row's number, from 0, for one that can't be decoded.

        Returns the columns class, wnid, name, probability, each a list of the five likeliest classes (or all there
        are), likeliest first. Probabilities are a softmax's, or independent ones where the model was trained with
        sigmoid cross-entropy.
        """
        images = []
        for number, image in enumerate(model_input["image"]):
            try:
                images.append(prepared(_bytes(image), self.image_size, self.resize, upright=self.upright))
            except (ValueError, TypeError) as error:
                raise mlflow.MlflowException.invalid_parameter_value(
                    f"image {number} (of rows 0 to {len(model_input) - 1}) can't be decoded ({error}): leave it out"
                ) from error
        rows: list[dict[str, list[Any]]] = []
        for start in range(0, len(images), CHUNK):
            rows += self._classify(np.stack(images[start : start + CHUNK]))
        return pd.DataFrame(rows, columns=["class", "wnid", "name", "probability"])

    @torch.inference_mode()
    def _classify(self, images_BHWC: np.ndarray[Any, np.dtype[np.uint8]]) -> list[dict[str, list[Any]]]:
        x_BCHW = normalise(torch.from_numpy(images_BHWC).to(self.device), torch.float32, self.model.config)
        logits_BC = self.model(x_BCHW)
        scores_BC = logits_BC.sigmoid() if self.sigmoid else logits_BC.softmax(-1)
        scores_BK, classes_BK = scores_BC.topk(min(TOP, len(self.classes)))
        return [
            {
                "class": indices,
                "wnid": [self.classes[index]["wnid"] for index in indices],
                "name": [self.classes[index]["name"] for index in indices],
                "probability": scores,
            }
            for indices, scores in zip(classes_BK.tolist(), scores_BK.tolist(), strict=True)
        ]


def _bytes(image: bytes | str) -> bytes:
    return base64.b64decode(image) if isinstance(image, str) else bytes(image)


mlflow.models.set_model(ImageClassifier())
