"""What both doors agree on: recipe, job, report, problems, settings, the stores and the doorbell.

Nothing here imports torch, numpy or flask, so the service stays small. Values (`problems`,
`safetensors_header`, `checkpoint`, `recipe`, `report`, `job`) know neither Redis nor the disk's
layout; `store`, `blobs` and `queue` are the only ways to those.
"""
