"""Training: what stands around a recurrent layer, losses, and optimisers. Every layer's `vjp` returns the way back.

One step of training an LSTM that classifies sequences by its last output:

>>> import numpy as np
>>> from nblstm import LSTM
>>> from nblstm.training import Adam, Linear, clip_grad_norm, cross_entropy
>>> lstm, decoder = LSTM(4, 16, seed=0), Linear(16, 3, seed=1)
>>> optimizer = Adam([lstm, decoder], lr=0.01)
>>> x, classes = np.ones((10, 2, 4), np.float32), [0, 2]
>>> (output, (h_n, c_n)), lstm_backward = lstm.vjp(x, input=False)
>>> logits, decoder_backward = decoder.vjp(h_n[-1])
>>> loss, d_logits = cross_entropy(logits, classes)
>>> g_decoder = decoder_backward(d_logits)
>>> g_lstm = lstm_backward(d_state=(g_decoder.input[None], np.zeros_like(c_n)))
>>> norm = clip_grad_norm([g_lstm, g_decoder], max_norm=1.0)
>>> optimizer.step([g_lstm, g_decoder])
>>> cross_entropy(decoder(lstm(x)[1][0][-1]), classes)[0] < loss
True
"""

from nblstm.training.clipping import clip_grad_norm, clip_grad_value
from nblstm.training.dropout import Dropout
from nblstm.training.embedding import Embedding
from nblstm.training.gradients import Gradients
from nblstm.training.indices import one_hot
from nblstm.training.initial_state import InitialState
from nblstm.training.language_model import RecurrentLanguageModel
from nblstm.training.linear import Linear
from nblstm.training.losses import cross_entropy, l1_loss, mse_loss
from nblstm.training.optim import SGD, Adam, AdamW
from nblstm.training.text import Batch, RandomBatches, SequentialBatches, Vocabulary
from nblstm.training.trainer import NonFiniteLossError, Report, Trainer

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Batch",
    "Dropout",
    "Embedding",
    "Gradients",
    "InitialState",
    "Linear",
    "NonFiniteLossError",
    "RandomBatches",
    "RecurrentLanguageModel",
    "Report",
    "SequentialBatches",
    "Trainer",
    "Vocabulary",
    "clip_grad_norm",
    "clip_grad_value",
    "cross_entropy",
    "l1_loss",
    "mse_loss",
    "one_hot",
]
