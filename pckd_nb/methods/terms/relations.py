"""Loss terms that compare the relations between images: CC, with neighbours in the batch.

In the shapes, B is the number of images in the batch and D the number of values per image.

Examples
--------
>>> import torch
>>> from pckd_nb.methods.terms import relations
>>> x = torch.rand(4, 128)
>>> relations.neighbour_congruence(x, x).item()
0.0
"""

from torch import Tensor

from ...tensor_checks import check_same_shape
from .numerics import full_precision


@full_precision
def neighbour_congruence(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""Return the loss of CC, correlation congruence, as in the code of the CRD paper.

    .. math::

        \mathrm{term} = \frac{1}{B - 1} \sum_{i=1}^{B-1} \sum_k d_{ik} \, d_{i+1,k}, \qquad
        d_{ik} = \left| x_{s,ik} - x_{t,ik} \right|

    x are the embeddings: 128 values, which a linear layer computes from the penultimate features. There is one layer
    for each network. Both are trained, so this function does not detach the teacher's embedding. Detach the teacher's
    features instead. The total is CE + 0.02·term.

    There are two traps:

    - Image i is compared with its neighbour i + 1 in the batch. So the value depends on the order of the images.
    - The paper compares all pairs of images by a kernel, see `baselines.CC`. The weight 0.02 belongs to the form here.

    Parameters
    ----------
    student_embedding, teacher_embedding : Tensor of shape (B, D)

    Returns
    -------
    scalar Tensor
        At least 0. 0 for a batch of one image, which has no neighbour.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match.

    References
    ----------
    Peng et al., "Correlation Congruence for Knowledge Distillation", arXiv 1904.01802. The form and the weight are from
    the repository HobbitLong/RepDistiller of Tian et al. (CRD), arXiv 1910.10699.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.relations import neighbour_congruence
    >>> student, teacher = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
    >>> neighbour_congruence(student, teacher).item()  # (1·2 + 2·3) / 2
    4.0
    """
    check_same_shape("embeddings", student_embedding, teacher_embedding)
    difference = (student_embedding - teacher_embedding).abs()
    return (difference[:-1] * difference[1:]).sum() / max(1, len(difference) - 1)
