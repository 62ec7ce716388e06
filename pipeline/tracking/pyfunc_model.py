"""The MLflow model: image bytes in, the likeliest classes out. MLflow runs this file to load the model.

Shapes: B batch, C classes, H height, W width, K classes returned.
"""

import base64
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch

from pipeline.core.errors import UserError
from pipeline.inference.classifier import open_classifier
from pipeline.inference.image_files import prepared

TOP = 5  # classes per image
CHUNK = 64  # images per forward pass


class ImageClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    """Artifacts: ``model``, a folder with weights and model.json, from jobs.export with --format safetensors."""

    def load_context(self, context: Any) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.classifier = open_classifier(Path(context.artifacts["model"]), device=device, dtype=torch.float32)

    def predict(self, context: Any, model_input: pd.DataFrame) -> pd.DataFrame:  # noqa: ARG002  (MLflow passes it)
        """One row per image. The column ``image`` holds an encoded image's bytes (or their base64 text), in any format
        that jobs.predict reads. Raises MlflowException if an image can't be decoded (with the row's number, from 0),
        and if the model's outputs are non-finite.

        Any format that jobs.predict reads. Raises MlflowException with the row number (from 0) if an image can't be
        decoded.

        Returns the columns class, wnid, name, probability, each a list for the five likeliest classes (fewer if the
        model has fewer), likeliest first. Probabilities are from a softmax, or independent if the model was trained
        with sigmoid cross-entropy.
        """
        known = self.classifier.known
        images = []
        for number, image in enumerate(model_input["image"]):
            try:
                images.append(prepared(_bytes(image), known.model.image_size, known.resize, upright=known.upright))
            except (ValueError, TypeError) as error:
                raise mlflow.MlflowException.invalid_parameter_value(
                    f"image {number} (of rows 0 to {len(model_input) - 1}) can't be decoded ({error}): leave it out"
                ) from error
        rows: list[dict[str, list[Any]]] = []
        for start in range(0, len(images), CHUNK):
            images_BHWC = torch.from_numpy(np.stack(images[start : start + CHUNK]))
            try:
                classes_BK, probabilities_BK = self.classifier.classify(images_BHWC, TOP)
            except UserError as error:
                raise mlflow.MlflowException(str(error)) from error
            rows += [
                {
                    "class": indices,
                    "wnid": [known.classes[index].wnid for index in indices],
                    "name": [known.classes[index].name for index in indices],
                    "probability": probabilities,
                }
                for indices, probabilities in zip(classes_BK.tolist(), probabilities_BK.tolist(), strict=True)
            ]
        return pd.DataFrame(rows, columns=["class", "wnid", "name", "probability"])


def _bytes(image: bytes | str) -> bytes:
    return base64.b64decode(image) if isinstance(image, str) else bytes(image)


mlflow.models.set_model(ImageClassifier())
