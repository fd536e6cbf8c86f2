"""Training: optimisers and clipping."""

from nblstm.training.clipping import clip_grad_norm, clip_grad_value
from nblstm.training.optim import SGD, Adam, AdamW

__all__ = ["SGD", "Adam", "AdamW", "clip_grad_norm", "clip_grad_value"]
