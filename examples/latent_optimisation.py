"""A latent is optimised until a classifier sees another class in its image: the gradient goes through the whole decode.

    python examples/latent_optimisation.py --to Bag

It prints the classifier's probabilities before and after, and writes latent_optimisation.png, the image on its way.
"""

import odeddim  # isort: skip  # before torch: its waiting threads then sleep

import argparse
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from odeddim.models.networks import classifier

NAMES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")


def words(chances: Tensor) -> str:
    """The three most likely classes with their probabilities."""
    most = chances.topk(3)
    return ", ".join(f"{NAMES[k]} {chance:.1%}" for chance, k in zip(most.values, most.indices, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Optimise a latent for a class of Fashion-MNIST.")
    parser.add_argument("--to", choices=NAMES, default="Bag", help="the class; %(default)s unless given")
    parser.add_argument("--seed", type=int, default=0, help="of the first latent; %(default)s unless given")
    parser.add_argument("--rounds", type=int, default=50, help="of the optimiser; %(default)s unless given")
    given = parser.parse_args()

    network, target = classifier.read().network, NAMES.index(given.to)
    x_T = odeddim.noise(1, (1, 28, 28), seed=given.seed).requires_grad_()
    optimiser = torch.optim.Adam([x_T], lr=0.05)
    path: list[tuple[Tensor, Tensor]] = []  # images, and their probabilities
    for n in range(given.rounds + 1):
        image = odeddim.solve(x_T, "unipc-2", steps=10)  # as differentiable as any function of torch
        logits = network(image)
        path.append((image.detach(), logits.detach().softmax(dim=1)[0]))
        if n < given.rounds:
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(logits, torch.tensor([target])).backward()
            optimiser.step()
            with torch.no_grad():
                x_T *= math.sqrt(x_T.numel()) / x_T.norm()  # as long as noise is: it stays a latent of the model
    print(f"before: {words(path[0][1])}\nafter:  {words(path[-1][1])}")

    figure, panels = plt.subplots(1, 6, figsize=(9, 1.9), layout="constrained")
    for panel, n in zip(panels, torch.linspace(0, given.rounds, 6).round().int().tolist(), strict=True):
        panel.imshow(path[n][0][0, 0].numpy(), cmap="gray", vmin=-1, vmax=1)
        panel.set_title(f"{NAMES[int(path[n][1].argmax())]}, {n}", fontsize="medium")
        panel.axis("off")
    figure.savefig("latent_optimisation.png", dpi=150)


if __name__ == "__main__":
    main()
