"""What ``python -m nblstm bench`` is made of; asv's benchmarks and the scripts of the documents use it too."""
