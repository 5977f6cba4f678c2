"""The engine: checkpoints in, smaller checkpoints out, in constant memory.

Knows numbers and files it is told about; knows nothing of Redis, Celery, Flask or the environment.
"""
