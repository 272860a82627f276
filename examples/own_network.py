"""A network of one's own, trained here in seconds on made-up images: images are encoded, and come back exactly.

    python examples/own_network.py

odeddim needs network(x, t), which predicts the noise, and the schedule that it was trained on. The script writes
own_network.h5, the latents, and own_network.png: images, their latents, and what these decode to.
"""

import odeddim  # isort: skip  # before torch: its waiting threads then sleep

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

SCHEDULE = odeddim.Schedule.linear()  # DDPM's: T = 1000


class Network(nn.Sequential):
    """It predicts ε from x (B, 1, 8, 8) and the label t (B,) between 0 and T - 1."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        waves = t[:, None] * (torch.pi / SCHEDULE.T) * 2.0 ** torch.arange(8)
        return super().forward(torch.cat([x.flatten(1), waves.sin(), waves.cos()], dim=1)).reshape(x.shape)


def dots(count: int) -> Tensor:
    """Images of one soft dot each with a little noise, (count, 1, 8, 8), nominally in [-1, 1]."""
    y, x = 1.5 + 4 * torch.rand(2, count, 1, 1, 1)
    far = (torch.arange(8.0)[:, None] - y) ** 2 + (torch.arange(8.0) - x) ** 2
    return 1.6 * torch.exp(-far / 3) - 0.8 + 0.08 * torch.randn_like(far)


def main() -> None:
    torch.manual_seed(0)
    network = Network(nn.Linear(64 + 16, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64))
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(1000):
        x_0, t = dots(128), torch.randint(SCHEDULE.T, (128,))
        sigma, noise = SCHEDULE.sigma(t).float().reshape(-1, 1, 1, 1), torch.randn_like(x_0)
        x = (x_0 + sigma * noise) / (1 + sigma**2).sqrt()  # √α·x̄, the input of DDPM's networks
        optimiser.zero_grad()
        (network(x, t.float()) - noise).square().mean().backward()
        optimiser.step()

    model = odeddim.VectorField.from_network(network, SCHEDULE, shape=(1, 8, 8), name="dots")
    images = dots(8)
    odeddim.encode(images, "belm", model=model).save("own_network.h5", model=model, overwrite=True)
    with odeddim.open("own_network.h5") as latents:
        state, back = latents[:], latents.decode(model=model)
    print(f"{len(state)} latents in own_network.h5; their images came back exactly: {torch.equal(back, images)}")

    figure, panels = plt.subplots(3, 8, figsize=(8, 3.2), subplot_kw={"xticks": [], "yticks": []}, layout="constrained")
    for panel, image in zip(panels.flat, torch.cat([images, state.x, back]).numpy(), strict=True):
        panel.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
    figure.savefig("own_network.png", dpi=150)


if __name__ == "__main__":
    main()
