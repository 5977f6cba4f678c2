"""Weights chosen with data: a model runs block by block, and each is changed on the way."""
