"""A photograph is inverted with a text-to-image pipeline of diffusers, and decoded under another prompt.

    python examples/invert_and_edit.py MODEL IMAGE "a photo of a cat" "a photo of a dog"

MODEL is a pipeline's folder, or its name on Hugging Face's hub, such as stable-diffusion-v1-5/stable-diffusion-v1-5.
The script writes edit.png: the photograph, what comes back under the prompt that inverted it, and what comes out under
the new one. The solver belm comes back exactly, so what the second picture lacks is what the autoencoder alone loses.
"""

import odeddim  # isort: skip  # before torch: its waiting threads then sleep

import argparse

import diffusers
import matplotlib.pyplot as plt
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description="Invert a photograph, and decode it under another prompt.")
    parser.add_argument("model", help="a pipeline's folder, or its name on Hugging Face's hub")
    parser.add_argument("image", help="the photograph")
    parser.add_argument("prompt", help="what it shows")
    parser.add_argument("new_prompt", help="what it is to show")
    parser.add_argument("--guidance", type=float, default=3.0, help="of the new prompt; %(default)s unless given")
    parser.add_argument("--steps", type=int, default=50, help="in each direction; %(default)s unless given")
    given = parser.parse_args()

    pipeline = diffusers.DiffusionPipeline.from_pretrained(given.model)
    model = odeddim.load(pipeline, device="cuda" if torch.cuda.is_available() else "cpu")
    assert model.image_shape is not None
    _, height, width = model.image_shape
    photo = odeddim.open_images(given.image, channels=3, prepare=odeddim.Preparation(resize=(height, width)))[:]

    shown = model.conditioned(prompt=given.prompt)
    state = odeddim.encode(photo, "belm", model=shown, steps=given.steps, progress=True)
    again = odeddim.decode(state, model=shown, progress=True)

    wanted = model.conditioned(prompt=given.new_prompt, guidance=given.guidance)
    edited = odeddim.decode(state, model=wanted, progress=True)  # by unipc-2, from the latent alone

    figure, panels = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    titles = ["the photograph", f"back: {given.prompt}", f"edited: {given.new_prompt}"]
    for panel, image, title in zip(panels, [photo, again, edited], titles, strict=True):
        panel.imshow((image[0].permute(1, 2, 0).cpu().numpy() / 2 + 0.5).clip(0, 1))
        panel.set_title(title, fontsize="medium", wrap=True)
        panel.axis("off")
    figure.savefig("edit.png", dpi=150)
    print(f"edit.png: {(again.cpu() - photo).square().mean().sqrt():.3f} is lost on the way back (rms in [-1, 1])")


if __name__ == "__main__":
    main()
