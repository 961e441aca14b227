#!/bin/bash
# Trains CONFIG on one node, with as many ranks as it has GPUs, without requeue.
#
#   sbatch [sbatch's flags] slurm/train_node.sh [CONFIG [train's arguments]]
#
# The same command again continues the run. For more nodes, and for runs that requeue themselves, there
# is train_large.sh; both read the same environment.
#
#SBATCH --job-name=forescale
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

home=${FORESCALE_HOME:-${SLURM_SUBMIT_DIR:-.}}
if [[ ! -f $home/slurm/train_large.sh ]]; then
    echo "train_node: $home is not Forescale's checkout; submit from there or set FORESCALE_HOME" >&2
    exit 2
fi
FORESCALE_REQUEUE=no FORESCALE_PREFLIGHT=no exec bash "$home/slurm/train_large.sh" "$@"
