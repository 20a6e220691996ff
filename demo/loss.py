"""Cross-entropy over the vocabulary without ever holding the whole logits matrix.

The logits of 8,192 tokens would take 100 MB, twice. Here each chunk's logits become its
gradient in place, while they are still in the processor's cache.
"""

import typing

import torch
from torch import Tensor

_CHUNK_TOKENS = 512


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: typing.Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        hidden, head = hidden.bfloat16(), weight.bfloat16()
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros(head.shape)
        total = torch.zeros(())
        chunks = (torch.split(tensor, _CHUNK_TOKENS) for tensor in (hidden, labels, d_hidden))
        for part, label, out in zip(*chunks, strict=True):
            logp = (part @ head.T).float().log_softmax(-1)
            total -= logp.gather(1, label[:, None]).sum()
            grad = logp.exp_().scatter_add_(1, label[:, None], torch.full((len(label), 1), -1.0)).bfloat16()
            torch.mm(grad, head, out=out)
            d_weight += grad.T @ part
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.count = len(labels)
        return total / len(labels)

    @staticmethod
    def backward(ctx: typing.Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = grads[0] / ctx.count
        return d_hidden.float() * scale, d_weight * scale, None


def next_token_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Mean loss in nats of hidden states [N, D] against labels [N], with the head `weight` [V, D]."""
    return typing.cast(Tensor, _LinearCrossEntropy.apply(hidden, weight, labels))  # type: ignore[no-untyped-call]
