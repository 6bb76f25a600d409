"""Files that start recipes on several processes and machines: torchrun, accelerate, SLURM. docs/clusters.md says how."""
