"""Every module of this folder registers the benchmark it defines; importing one does nothing else."""
