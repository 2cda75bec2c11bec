"""Eq 1 to 6 of the paper, each a function with its number.

Eq 1 and 2 are values that a discriminator makes large and a generator small. Discriminators give
logits: D = sigmoid(logit), and log D = -softplus(-logit) stays finite where D is 0 or 1.

The paper's norms and likelihoods are sums over pixels. Here they are means, so that an image of
another size weighs the same beside the adversarial terms; the recipe has a weight for each term.
"""

from typing import Literal

import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor

Form = Literal["log_1_minus_d", "as_printed"]
"""How Eq 2 judges what was generated from an anomaly (`anomaly_adversarial`)."""


def adversarial(real: Tensor, generated: Tensor) -> Tensor:
    """L_adv (Eq 1): E[log(1 - D(x_re, A_gen))] + E[log D(x_in, A_nor)], from the logits of D."""
    return -F.softplus(generated).mean() - F.softplus(-real).mean()


def anomaly_adversarial(real: Tensor, generated: Tensor, form: Form = "log_1_minus_d") -> Tensor:
    """L_adv^ano (Eq 2), from the logits of D for (x_ano, A_ano) and (x_re, A_gen^ano).

    Eq 2 is printed with 1 - log D where Eq 1 has log(1 - D). `as_printed`, the term has no upper
    bound: a discriminator that makes it large sends its logits to -∞ and forgets the other term.
    With `log_1_minus_d` it is bounded by 0, and both equations ask the same.
    """
    if form == "as_printed":
        return (1 + F.softplus(-generated)).mean() - F.softplus(-real).mean()
    return adversarial(real, generated)


def generator_adversarial(generated: Tensor) -> Tensor:
    """What the generator makes small of Eq 1 and 2: E[-log D] of what it generated.

    It has the minimum of E[log(1 - D)] and a gradient where D is sure of itself (Goodfellow et al.
    2014); Eq 2 as printed differs from it by the constant 1.
    """
    return F.softplus(-generated).mean()


def autoencoding(
    images: Tensor, reconstruction: Tensor, mean: Tensor, log_variance: Tensor, *, deviation: float
) -> Tensor:
    """L_G (Eq 3): the negative log-likelihood of `images` plus KL(q(z|x) ‖ N(0, 1)), per value.

    Args:
        images: x_in, RGB in [0, 1].
        reconstruction: x_re, the mean of p(x|z), a normal distribution of each value.
        mean: Of q(z|x).
        log_variance: Of q(z|x).
        deviation: The standard deviation of p(x|z); a constant that depends on it alone is left
            out.
    """
    likelihood = F.mse_loss(reconstruction, images) / (2 * deviation**2)
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
    return likelihood + divergence / images.numel()


def attention_error(
    generated: Tensor, normal: Tensor, generated_ano: Tensor, anomalous: Tensor
) -> Tensor:
    """L_att (Eq 4): E‖A_gen^nor - A_nor‖² + E‖A_gen^ano - A_ano‖², per pixel.

    Args:
        generated: A_gen of good parts.
        normal: A_nor, what it should be: 1.
        generated_ano: A_gen of synthetic anomalies.
        anomalous: A_ano, what that should be: 0 where they are anomalous.
    """
    return F.mse_loss(generated, normal) + F.mse_loss(generated_ano, anomalous)


def total(
    adversarial_ano: Tensor, adversarial_nor: Tensor, autoencoder: Tensor, attention: Tensor
) -> Tensor:
    """L_total (Eq 5): the sum of Eq 2, 1, 3 and 4, as the generator sees them."""
    return adversarial_ano + adversarial_nor + autoencoder + attention


def attended_features(features: Tensor, attention: Tensor) -> Tensor:
    """F_nor = F_img ∘ A_gen (Eq 6): `(N, C, h, w)` times the map `(N, 1, H, W)`, brought to h × w.

    A place of F_img stands for several pixels; it is weighted by their mean attention.
    """
    stride = attention.shape[-1] // features.shape[-1]
    return features * F.avg_pool2d(attention, stride)
