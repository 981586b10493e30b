"""Vector quantisation: codes whose values are the vectors of a learned codebook. See van den Oord et al. 2017.

The paper is arXiv:1711.00937. `penalties.negative_vq` is the loss that trains the codebook.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.codes import Categoricals, Codes, check_codes, join, split
from vae_jax.core import Params
from vae_jax.distributions import distribution, expand_like, static
from vae_jax.xla import loops


@distribution
class VectorCodes:
    """Codes of a discrete latent z, [L], that holds G vectors of a codebook one after the other: L = G * D.

    It stands in place of `Codes`. A vector is one variable, whose digit is the row of the codebook.
    """

    vectors: Array  # [K, D], the codebook
    rows: Codes = static()  # G variables with K values each, in place of the vectors

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.rows.sizes

    @property
    def one_hot(self) -> bool:
        return False

    @property
    def num_groups(self) -> int:
        return self.rows.num_groups

    @property
    def num_codes(self) -> int:
        return self.rows.num_codes

    @property
    def num_joint(self) -> int:
        return self.rows.num_joint

    def digits(self, z: Array) -> Array:
        """The rows of the nearest vectors, [..., L] -> [..., G], int32: the first one of those equally near.

        Vectors that differ by no more than float32's rounding of their norm may be taken for one another.
        """
        num = len(self.vectors)
        half = 0.5 * jnp.sum(self.vectors**2, -1)
        products = jnp.einsum("...d,kd->...k", split(z, self.num_groups), self.vectors, precision="highest")
        distance = expand_like(half, products) - products  # half of the squared one, up to a constant of z
        least = jnp.min(distance, -1, keepdims=True)
        # On CPU, argmin takes ten times as long as these two minima.
        row = expand_like(jnp.arange(num, dtype=jnp.int32), distance)
        return jnp.min(jnp.where(distance == least, row, num - 1), -1)

    def values(self, digits: Array, dtype: Any = jnp.float32) -> Array:
        """The vectors of these rows, [..., G] -> [..., L]."""
        return join(self.vectors.astype(dtype)[digits])

    indices, of_indices = digits, values

    def joint(self, index: Array, dtype: Any = jnp.float32) -> Array:
        """The values of z by their numbers, as `Codes.joint` gives them: [...] -> [..., L]."""
        rows = self.rows._replace(group=self.rows.num_groups)
        return self.values(rows.digits_of(index[..., None]), dtype)

    def log_probs(self, logits: Array) -> Array:
        return self.rows.log_probs(logits)


@distribution
class NearestCode:
    """All the mass at the vectors that are nearest to the outputs of the encoder. Its log probability is 0 there."""

    mean: Array  # [..., L], the vectors, whose gradient passes straight through to the outputs
    outputs: Array  # [..., L], of the encoder
    digits: Array  # [..., G], int32
    codes: VectorCodes

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return jnp.broadcast_to(self.mean, sample_shape + self.mean.shape)

    def log_prob(self, value: Array) -> Array:
        return jnp.where(jnp.all(expand_like(self.mean, value) == value, -1), 0, -jnp.inf).astype(value.dtype)

    def kl(self, p: Categoricals) -> Array:
        """-log p(code), [...], exact. Its gradient reaches p alone. Raises ValueError for another p."""
        check_codes(self.codes, p)
        return -p.log_prob_of(self.digits)


def with_vectors(p: Any, vectors: Array, rows: Codes) -> Categoricals:
    """The prior of rows `p` as one of vectors. Raises ValueError for a prior of another kind."""
    check_codes(rows, p)
    return replace(p, codes=VectorCodes(vectors, rows))


def restart(
    key: Array, q: NearestCode, before: Params, params: Params, average: Params | None, steps: int
) -> tuple[Params, Params | None]:
    """Move each vector that no output of the last `steps` batches chose to a random output of the latest batch.

    The results are `params` and `average` with such vectors moved. No two of them take the same output; those that are
    too many wait for the next batch. A moved vector is the same in the average, where it has no past.

    q: q(z | x) of the latest batch. before, params: the parameters of the posterior before and after the update.
    average: the moving average of `params`, or None. Their `idle`, [K], counts the batches since a vector was chosen.
    So it is a pure function of its arguments.
    """
    size = before["codebook"].shape[-1]
    outputs = q.outputs.reshape(-1, size)
    idle = (before["idle"] + 1).at[q.digits.reshape(-1)].set(0)  # the optimiser may have changed that of `params`
    rank = jnp.cumsum(idle >= steps) - 1
    moved = (idle >= steps) & (rank < len(outputs))
    own = (params["codebook"], None if average is None else average["codebook"])
    noise = jax.random.uniform(key, (len(outputs),))  # whose order is a random one

    def move() -> tuple[Array, Array | None]:
        chosen = jnp.argsort(noise)[jnp.minimum(rank, len(outputs) - 1)]
        return jax.tree.map(lambda a: jnp.where(moved[:, None], outputs[chosen].astype(a.dtype), a), own)

    codebook, averaged = loops.replace_if(jnp.any(moved), move, own)
    idle = jnp.where(moved, 0, idle)
    changed = {**params, "codebook": codebook, "idle": idle}
    return changed, None if average is None else {**average, "codebook": averaged, "idle": idle}
