"""One file for each command of ``python -m nblstm``, and what they share."""
