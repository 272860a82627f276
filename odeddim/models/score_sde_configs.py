"""The configurations of score_sde's published checkpoints, by the names of their files in its folder configs/."""

from __future__ import annotations

from typing import Any

_DDPM = {"model": "ddpm", "continuous": False, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attn_resolutions": [16]}
_DDPMPP = {
    "model": "ncsnpp",
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "none",
    "fir": False,
    "skip_rescale": True,
    "embedding_type": "positional",
    "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 4,
    "attn_resolutions": [16],
}
_NCSNPP = {**_DDPMPP, "progressive_input": "residual", "fir": True}
_LARGE = {
    **_NCSNPP,
    "progressive": "output_skip",
    "progressive_input": "input_skip",
    "ch_mult": [1, 1, 2, 2, 2, 2, 2],
    "num_res_blocks": 2,
    "image_size": 256,
    "embedding_type": "fourier",
    "continuous": True,
}
_LARGEST = {**_LARGE, "ch_mult": [1, 2, 4, 8, 16, 32, 32, 32], "num_res_blocks": 1, "image_size": 1024}
_VP = {"sde": "vpsde", "centered": True, "image_size": 32, "scale_by_sigma": False}
_SUB = {**_VP, "sde": "subvpsde"}
_VE = {"sde": "vesde", "centered": False, "image_size": 32, "scale_by_sigma": True}
_CONTINUOUS = {"continuous": True}
_STEPS = {"continuous": False}
_FOURIER = {"continuous": True, "embedding_type": "fourier"}
_DEEP = {"num_res_blocks": 8}
_DDPM_256 = {**_VP, **_DDPM, "ch_mult": [1, 1, 2, 2, 4, 4], "image_size": 256}

CONFIGS: dict[str, dict[str, Any]] = {
    "vp/ddpm/cifar10": {**_VP, **_DDPM},
    "vp/ddpm/cifar10_continuous": {**_VP, **_DDPM, **_CONTINUOUS},
    "vp/ddpm/bedroom": _DDPM_256,
    "vp/ddpm/church": _DDPM_256,
    "vp/ddpm/celebahq": _DDPM_256,
    "vp/cifar10_ddpmpp": {**_VP, **_DDPMPP, **_STEPS},
    "vp/cifar10_ddpmpp_continuous": {**_VP, **_DDPMPP, **_CONTINUOUS},
    "vp/cifar10_ddpmpp_deep_continuous": {**_VP, **_DDPMPP, **_CONTINUOUS, **_DEEP},
    "vp/cifar10_ncsnpp": {**_VP, **_NCSNPP, **_STEPS},
    "vp/cifar10_ncsnpp_continuous": {**_VP, **_NCSNPP, **_CONTINUOUS},
    "vp/cifar10_ncsnpp_deep_continuous": {**_VP, **_NCSNPP, **_CONTINUOUS, **_DEEP},
    "subvp/cifar10_ddpm_continuous": {**_SUB, **_DDPM, **_CONTINUOUS},
    "subvp/cifar10_ddpmpp_continuous": {**_SUB, **_DDPMPP, **_CONTINUOUS},
    "subvp/cifar10_ddpmpp_deep_continuous": {**_SUB, **_DDPMPP, **_CONTINUOUS, **_DEEP},
    "subvp/cifar10_ncsnpp_continuous": {**_SUB, **_NCSNPP, **_CONTINUOUS},
    "subvp/cifar10_ncsnpp_deep_continuous": {**_SUB, **_NCSNPP, **_CONTINUOUS, **_DEEP},
    "ve/cifar10_ddpm": {**_VE, **_DDPM},
    "ve/cifar10_ncsnpp": {**_VE, **_NCSNPP, **_STEPS},
    "ve/celeba_ncsnpp": {**_VE, **_NCSNPP, **_STEPS, "image_size": 64},
    "ve/cifar10_ncsnpp_continuous": {**_VE, **_NCSNPP, **_FOURIER},
    "ve/cifar10_ncsnpp_deep_continuous": {**_VE, **_NCSNPP, **_FOURIER, **_DEEP},
    "ve/bedroom_ncsnpp_continuous": {**_VE, **_LARGE},
    "ve/church_ncsnpp_continuous": {**_VE, **_LARGE},
    "ve/celebahq_256_ncsnpp_continuous": {**_VE, **_LARGE},
    "ve/ffhq_256_ncsnpp_continuous": {**_VE, **_LARGE},
    "ve/celebahq_ncsnpp_continuous": {**_VE, **_LARGEST},
    "ve/ffhq_ncsnpp_continuous": {**_VE, **_LARGEST},
}
"""The settings that the weights do not show. The range of noise levels is in the file."""
