#!/bin/bash
# Trains CONFIG on nodes of 8 GPUs, and requeues itself after a time limit, a preemption, a dead node,
# a killed or a hung rank.
#
#   sbatch [sbatch's flags] slurm/train_large.sh [CONFIG [train's arguments]]
#
# sbatch's flags override the lines below, for example
#   sbatch --nodes 16 --time 2-00:00:00 --partition gpu slurm/train_large.sh configs/moe_large.yaml \
#       data.source=/data/series.parquet --run-dir /scratch/runs/moe
#
# Environment (slurm/README.md says more):
#   FORESCALE_CONTAINER   an image for `srun --container-image`; without it the checkout's .venv, or
#                         the python3 that the job was submitted with
#   FORESCALE_MOUNTS      what the container sees of the nodes, as `--container-mounts` takes it
#   FORESCALE_HOME        the checkout, where it is not the folder that the job was submitted from
#   FORESCALE_REQUEUE     no: never requeue; a job array or singleton chain continues instead
#   FORESCALE_PREFLIGHT   no: do not examine the nodes before training
#
#SBATCH --job-name=forescale
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -u -o pipefail

end() { # CODE SENTENCE
    echo "train_large: $2" >&2
    exit "$1"
}

[[ -n ${SLURM_JOB_ID:-} ]] || end 2 "submit it: sbatch slurm/train_large.sh"
home=${FORESCALE_HOME:-${SLURM_SUBMIT_DIR:-.}}
[[ -f $home/launch/train.py ]] ||
    end 2 "$home is not Forescale's checkout; submit from there or set FORESCALE_HOME"
cd "$home" || exit 2
[[ ${1:-} == -* ]] && end 2 "CONFIG comes first: sbatch slurm/train_large.sh CONFIG $*"
config=${1:-configs/large.yaml}
shift $(($# > 0))

image=${FORESCALE_CONTAINER:-}
[[ $image =~ ^/|\.sqsh$ && ! -e $image ]] && end 2 "FORESCALE_CONTAINER: there is no $image"
host_python=$PWD/.venv/bin/python # runs beside this script, outside of any container
[[ -x $host_python ]] || host_python=$(command -v python3) ||
    end 2 "no python3: load a module, make setup, or set FORESCALE_CONTAINER"
step_python=("$host_python") # runs in steps
if [[ -n $image ]]; then
    step_python=(--container-image="$image" --container-workdir="$PWD"
        --container-mounts="${FORESCALE_MOUNTS:-$PWD:$PWD}" python3)
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch
export FORESCALE_START_SECONDS=${FORESCALE_START_SECONDS:-120} # many nodes load Python slowly
export PYTHONUNBUFFERED=1
unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE # each step may use its nodes' memory

requeue=("$host_python" -ES -m launch.requeue) # the policy, with the standard library alone
decide() { # MOMENT [FACTS]: end this script, the job requeued or not, or return and go on
    local code
    trap '' TERM # comes with a requeue
    "${requeue[@]}" "$@" --run="$run" ${signalled:+--signalled}
    code=$?
    ((code == 10)) || exit "$code" # its GO_ON
    trap - TERM
}

# The ranks get USR1 from Slurm; this shell does with --signal=B:USR1 and scancel --batch.
signalled=
ranks=
trap 'signalled=yes; [[ -z $ranks ]] || kill -USR1 "$ranks"' USR1

run=$("${requeue[@]}" folder "$config" "$@") || exit
echo "train_large: job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, $(date '+%F %T'), $run" \
    "on $SLURM_JOB_NODELIST"
decide start

# What cannot run is refused here, once, before a node works. A step sees the GPUs that were asked for.
one=(--nodes=1 --ntasks=1 --input=none)
tasks=${SLURM_NTASKS_PER_NODE:-1}
gpus=$(srun "${one[@]}" sh -c "echo \${SLURM_GPUS_ON_NODE:-$tasks}")
decide gpus $? "$tasks" "$gpus"
plan=$(srun "${one[@]}" --gres=none "${step_python[@]}" -m launch plan "$config" --run-dir="$run" "$@" \
    --world "$SLURM_NTASKS" --node "$tasks" --json --explain)
decide plan $? <<<"$plan"

if [[ ${FORESCALE_PREFLIGHT:-yes} != no ]]; then
    report=$(srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --wait=30 \
        --input=none "${step_python[@]}" -m launch preflight "$run" --tasks "$tasks" --json --explain)
    decide preflight $? <<<"$report"
fi

saved=$(cat "$run/saved" 2>/dev/null)
rm -f "$run/saved" "$run/done" # of an earlier start
srun --kill-on-bad-exit=1 --wait=60 --label --input=none "${step_python[@]}" launch/train.py "$config" \
    --run-dir="$run" "$@" &
ranks=$!
"${requeue[@]}" limit --run="$run" & # for ranks that hang, or save for too long
limit=$!
while
    wait "$ranks" # or until a signal
    code=$?
    kill -0 "$ranks" 2>/dev/null
do :; done
kill "$limit" 2>/dev/null
decide training "$code" "$saved"
