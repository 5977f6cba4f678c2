"""Exported programs (.pt2): compressed as data, and opened by torch where they are run.

Compression reads and writes their archives with numpy. What loads a program into torch stands in
`programs.loading` alone, and runs in a sandbox.
"""
