"""One machine, no docker, no root: what `make up` and `make demo` run."""
