"""What a model has learned: attention, frequencies, tokens, similarity, rank, and where its loss goes.

The functions take tensors and return tensors or arrays; `plots` draws every figure.
"""
