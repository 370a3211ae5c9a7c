#!/bin/bash
# sbatch examples/slurm_job.sh examples/torch_digits.py --epochs 2
#
# One horovodrun on the allocation's first node, which starts the workers on all of them. Nodes must
# let each other in by ssh; for a job on one node that is not needed.
#SBATCH --job-name=slowmo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --time=01:00:00
set -euo pipefail

# Activate your environment here, such as: source .venv/bin/activate
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/$/:$SLURM_NTASKS_PER_NODE/" | paste -sd,)
# With several nodes add: --network-interface eth0, the one by which they see each other.
horovodrun --gloo -np "$SLURM_NTASKS" -H "$hosts" python "$@"
