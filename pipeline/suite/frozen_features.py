"""Frozen features in the suite's table: nearest neighbours, linear probes, few-shot. Extracted once for all of them."""

import statistics

import torch

from pipeline.core.errors import UserError
from pipeline.core.progress import Bar
from pipeline.dataset.joined_split import JoinedSplit
from pipeline.evaluation.feature_probes import (
    check_features,
    choose_shots,
    extract,
    linear_probe,
    nearest_neighbours,
)
from pipeline.evaluation.sgd_probe import sgd_probe
from pipeline.runs.evaluations import mlflow_name
from pipeline.runs.suite_results import Result
from pipeline.suite.run_suite import Suite

NEIGHBOURS = (10, 20, 100, 200)  # DINO's (arXiv 2104.14294, appendix)
SHOTS = (1, 5, 10)  # training samples per class
DRAWS = 5  # random draws of the training samples, for mean and standard deviation


def evaluate_features(suite: Suite, train: JoinedSplit, split: JoinedSplit) -> list[Result]:
    """Results of probes fitted to ``train`` and tested on ``split``: stored ones, or new ones, which are stored.

    Collective: each process extracts its share of the features, then all compute the same results. Raises UserError.
    """
    dataset = mlflow_name(split.info.name)
    key = suite.key([train.digest, split.digest, split.info.classes_digest, repr((NEIGHBOURS, SHOTS, DRAWS))])
    names = {
        **{f"features-{dataset}-knn-{k}": f"{dataset} features, {k} nearest neighbours" for k in NEIGHBOURS},
        f"features-{dataset}-linear": f"{dataset} features, linear probe (closed form)",
        f"features-{dataset}-sgd": f"{dataset} features, linear probe (SGD)",
        **{f"features-{dataset}-{shots}-shot": f"{dataset} features, {shots} per class" for shots in SHOTS},
    }
    found = {name: suite.kept(name, key) for name in names}
    if not all(found.values()):
        z_ND, z_MD = _extract(suite, train), _extract(suite, split)
        labels_N, labels_M = (
            torch.from_numpy(part.label.astype("int64")).to(suite.classifier.device) for part in (train, split)
        )
        check_features(z_ND, z_MD, labels_N, "a probe", "--features")
        scores = dict(zip(names, probe_all(z_ND, labels_N, z_MD, labels_M, split.info.classes), strict=True))
        found |= {
            name: suite.keep(name, title, scores[name], key) for name, title in names.items() if found[name] is None
        }
    results = [result for result in found.values() if result is not None]
    for result in results:
        suite.log(result)
    return results


def probe_all(
    z_ND: torch.Tensor, labels_N: torch.Tensor, z_MD: torch.Tensor, labels_M: torch.Tensor, classes: int
) -> list[dict[str, float]]:
    """Scores by NEIGHBOURS, of the closed form, of SGD, by SHOTS. N training samples, M held-out samples, D width."""

    def top1(predicted_M: torch.Tensor) -> float:
        return float((predicted_M == labels_M).double().mean())

    found = [
        {"top1": top1(predicted_M)} for predicted_M in nearest_neighbours(z_ND, labels_N, z_MD, classes, NEIGHBOURS)
    ]
    found.append({"top1": top1(linear_probe(z_ND, labels_N, z_MD, classes))})
    predicted_M, rate = sgd_probe(z_ND, labels_N, z_MD, classes)
    found.append({"top1": top1(predicted_M), "lr": rate})
    for shots in SHOTS:
        draws = []
        for seed in range(DRAWS):
            rows = torch.from_numpy(choose_shots(labels_N.cpu().numpy(), shots, seed)).to(z_ND.device)
            draws.append(top1(linear_probe(z_ND[rows], labels_N[rows], z_MD, classes)))
        found.append({"top1": statistics.fmean(draws), "std": statistics.stdev(draws)})
    return [{"samples": float(len(z_MD)), **scores} for scores in found]


def _extract(suite: Suite, split: JoinedSplit) -> torch.Tensor:
    """The features of every sample, on every process."""
    classifier = suite.classifier
    if classifier.model is None:
        raise UserError(
            f"--features needs the weights, and MODEL {str(suite.source)!r} is a graph: name the run or another export"
        )
    with Bar(f"features of {split.name}", len(split), "images", shown=suite.rank == 0) as bar:
        z_ND = extract(
            classifier.model, split, batch=suite.batch, workers=suite.workers, device=classifier.device,
            resize=classifier.known.resize, rank=suite.rank, world_size=suite.world_size, advance=bar.advance,
        )  # fmt: skip
    return suite.sum(z_ND) if suite.world_size > 1 else z_ND
