"""The loops: every function here is compiled by Numba and knows nothing of layers, files or Python objects."""
