"""Internal cluster-validity indices, exact at any number of points.

>>> from MODULE import INDICES, all_indices

`indices` holds the indices and the table of them; `_pairs` the blocked pass over the pairwise distances behind them.
"""

from MODULE.indices import (
    INDICES,
    all_indices,
    c_index,
    calinski_harabasz_index,
    davies_bouldin,
    dunn_index,
    hartigan_index,
    mclain_rao_index,
    occupancy,
    sampled_indices,
    silhouette,
)

__all__ = [
    "INDICES",
    "all_indices",
    "c_index",
    "calinski_harabasz_index",
    "davies_bouldin",
    "dunn_index",
    "hartigan_index",
    "mclain_rao_index",
    "occupancy",
    "sampled_indices",
    "silhouette",
]
