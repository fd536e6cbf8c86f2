"""Training: what stands around a recurrent layer, and losses. Every layer's `vjp` returns the way back.

One step of training an LSTM that classifies sequences by its last output:

>>> import numpy as np
>>> from nblstm import LSTM
>>> from nblstm.training import Linear, cross_entropy
>>> lstm, decoder = LSTM(4, 16, seed=0), Linear(16, 3, seed=1)
>>> x, classes = np.ones((10, 2, 4), np.float32), [0, 2]
>>> (output, (h_n, c_n)), lstm_backward = lstm.vjp(x, input=False)
>>> logits, decoder_backward = decoder.vjp(h_n[-1])
>>> loss, d_logits = cross_entropy(logits, classes)
>>> g_decoder = decoder_backward(d_logits)
>>> g_lstm = lstm_backward(d_state=(g_decoder.input[None], np.zeros_like(c_n)))
>>> for layer, g in [(lstm, g_lstm), (decoder, g_decoder)]:
...     layer.set_parameters({name: p - 0.1 * g.parameters[name] for name, p in layer.named_parameters()})
>>> cross_entropy(decoder(lstm(x)[1][0][-1]), classes)[0] < loss
True
"""

from nblstm.training.dropout import Dropout
from nblstm.training.embedding import Embedding
from nblstm.training.gradients import Gradients
from nblstm.training.initial_state import InitialState
from nblstm.training.linear import Linear
from nblstm.training.losses import cross_entropy, l1_loss, mse_loss

__all__ = ["Dropout", "Embedding", "Gradients", "InitialState", "Linear", "cross_entropy", "l1_loss", "mse_loss"]
