"""A linear classifier on frozen features, trained with SGD like DINO's linear evaluation (arXiv 2104.14294).

From DINO: SGD with momentum 0.9 and no weight decay, 100 epochs of batches of 1,024, a cosine schedule to zero,
learning rates per 256 samples, weights from N(0, 0.01). Unlike DINO's, the training images are not augmented: features
are extracted once. Letters of the shape suffixes: N training samples, M held-out samples, B batch, D width, C classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPOCHS = 100
BATCH = 1024
MOMENTUM = 0.9
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # per 256 samples; DINO's default is the first
HELD_OUT = 10  # one in this many training samples is held out to choose the learning rate
STD = 0.01  # standard deviation of the initial weights


def train_heads(z_ND: Tensor, labels_N: Tensor, classes: int, rates: Sequence[float]) -> list[nn.Linear]:
    """One classifier per learning rate, with the same initial weights and batches."""
    generator = torch.Generator().manual_seed(0)
    weight_CD = STD * torch.randn(classes, z_ND.shape[1], generator=generator)
    heads = []
    for _ in rates:
        head = nn.Linear(z_ND.shape[1], classes, device=z_ND.device)
        with torch.no_grad():
            head.weight.copy_(weight_CD)
            head.bias.zero_()
        heads.append(head)
    batch = min(BATCH, len(z_ND))
    groups = [
        {"params": list(head.parameters()), "lr": rate * batch / 256} for head, rate in zip(heads, rates, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        order_N = torch.randperm(len(z_ND), generator=generator).to(z_ND.device)
        for rows_B in torch.split(order_N, batch):
            z_BD, labels_B = z_ND[rows_B], labels_N[rows_B]
            optimizer.zero_grad()
            torch.stack([F.cross_entropy(head(z_BD), labels_B) for head in heads]).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return heads


@torch.no_grad()
def right(head: nn.Linear, z_MD: Tensor, labels_M: Tensor) -> float:
    """Fraction of the samples whose class has the largest logit."""
    return float((head(z_MD).argmax(1) == labels_M).double().mean())


def sgd_probe(z_ND: Tensor, labels_N: Tensor, z_MD: Tensor, classes: int) -> tuple[Tensor, float]:
    """Predicted class of each held-out sample, and the learning rate.

    The rate is chosen on a tenth of the training samples, never on the held-out ones; the classifier is then trained
    on all training samples.
    """
    order_N = torch.randperm(len(z_ND), generator=torch.Generator().manual_seed(1)).to(z_ND.device)
    chosen = order_N[: max(1, len(z_ND) // HELD_OUT)]
    trained = order_N[len(chosen) :]
    heads = train_heads(z_ND[trained], labels_N[trained], classes, LEARNING_RATES)
    scores = [right(head, z_ND[chosen], labels_N[chosen]) for head in heads]
    rate = LEARNING_RATES[scores.index(max(scores))]
    (head,) = train_heads(z_ND, labels_N, classes, [rate])
    with torch.no_grad():
        predicted_M: Tensor = head(z_MD).argmax(1)
    return predicted_M, rate
