"""The same layers on an NVIDIA GPU: ``lstm.to("cuda")``; needs ``pip install "nblstm[cuda]"``.

A layer that was moved keeps its parameters, its calls and its errors; what it computes, it computes on the GPU. Arrays
with ``__cuda_array_interface__`` are read where they lie; others are moved there. Results stay there: ``np.asarray`` or
``copy_to_host`` brings one back. docs/cuda.md says how it works.

>>> import nblstm
>>> lstm = nblstm.LSTM(4, 8, seed=0)
>>> try:
...     lstm = lstm.to("cuda")
... except RuntimeError as error:  # on a machine without a GPU
...     print(str(error).startswith("LSTM.to device: expected"))
... else:
...     print(lstm.device == "cuda:0")
True
"""

from nblstm.cuda.device import using_stream

__all__ = ["using_stream"]
