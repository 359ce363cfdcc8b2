"""Is a result of any use? Sentences for those that are not, from the numbers that the notebooks record."""

from collections.abc import Mapping
from typing import Any

CLEARLY = 1.0  # dB by which an autoencoder must beat a flat colour
NOTHING_LEARNT = 0.98  # error of a UNet; 1 is that of one that always answers 0
CHANCE = 1.2  # times chance; a mean confidence below that says nothing


def doubts(scores: Mapping[str, Any], n_clusters: int | None = None) -> list[str]:
    """A sentence for each number that says that the result is of no use, and what to do; none if all is well.

    scores: as a notebook records them; names that are not here are not looked at. n_clusters: k, for chance.
    """
    sentences = []
    psnr, flat = scores.get("psnr_db"), scores.get("psnr_flat_colour_db")
    if psnr is not None and flat is not None and psnr < flat + CLEARLY:
        relation = "no better" if psnr <= flat else "hardly better"
        sentences.append(
            f"Reconstructions ({psnr:.1f} dB) are {relation} than one flat colour for each tile ({flat:.1f} dB): what "
            "is built on this autoencoder will show no tissue. Train it longer (autoencoder.epochs), or on more tiles."
        )
    if 1 in (scores.get("codes_used"), scores.get("codes_used_on_test_tiles")):
        sentences.append(
            "Every place of every tile has one and the same code: this autoencoder keeps nothing of a tile. Train it "
            "anew (restart) with another seed, or longer (autoencoder.epochs)."
        )
    if (error := scores.get("last_mse")) is not None and error >= NOTHING_LEARNT:
        sentences.append(
            f"The UNet's error ({error:.3f}) is that of one that always answers 0: what it draws is noise. Train it "
            "longer (training.epochs), or with a higher rate (training.learning_rate)."
        )
    judge, chance = scores.get("second_judge"), scores.get("by_chance", 1)  # 1 with one cluster: nothing to tell
    if judge is not None and judge["share_assigned"] <= chance < 1:
        sentences.append(
            f"Generated tiles are sorted as asked no more often ({judge['share_assigned']:.0%}) than "
            f"by chance ({chance:.0%}): the UNet ignores the cluster. Train it longer (training.epochs)."
        )
    if n_clusters is None or n_clusters < 2:
        return sentences
    if scores.get("clusters_used") == 1:
        sentences.append(
            f"All tiles are in one of {n_clusters} clusters: there is nothing to ask for. Train the clusters anew "
            'with another seed, or take clustering = "kmeans".'
        )
    confidence = scores.get("mean_confidence", scores.get("mean_probability"))
    if confidence is not None and confidence < CHANCE / n_clusters:
        sentences.append(
            f"No tile is clearly in one cluster: the mean probability of a tile's cluster is {confidence:.3f}, and "
            f'{1 / n_clusters:.3f} is chance. Train them longer, or take clustering = "kmeans".'
        )
    return sentences
