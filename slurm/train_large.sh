#!/bin/bash
# Trains CONFIG on nodes of 8 GPUs and comes back by itself: after a time limit, a preemption, a dead
# node, a killed or a hung rank.
#
#   sbatch [sbatch's flags] slurm/train_large.sh [CONFIG [train's arguments]]
#
# sbatch's flags count more than the lines below, for example
#   sbatch --nodes 16 --time 2-00:00:00 --partition gpu slurm/train_large.sh configs/moe_large.yaml \
#       data.source=/data/series.parquet --run-dir /scratch/runs/moe
#
# Environment (slurm/README.md says more):
#   FORESCALE_CONTAINER   an image for `srun --container-image`; without it the checkout's .venv, or
#                         the python3 that the job was submitted with
#   FORESCALE_HOME        the checkout, where it is not the folder that the job was submitted from
#   FORESCALE_REQUEUE     no: never requeue; a job array or singleton chain goes on instead
#   FORESCALE_PREFLIGHT   no: do not look at the nodes before training
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

end() { # CODE SENTENCE: no requeue
    echo "train_large: $2" >&2
    exit "$1"
}

[[ -n ${SLURM_JOB_ID:-} ]] || end 2 "submit it: sbatch slurm/train_large.sh"
cd "${FORESCALE_HOME:-${SLURM_SUBMIT_DIR:-.}}" || exit 2
[[ -f launch/train.py ]] ||
    end 2 "$PWD is not Forescale's checkout; submit from there or set FORESCALE_HOME"

config=${1:-configs/large.yaml}
shift $(($# > 0))

# The run folder is the same for every start of a job or of a chain of jobs.
run=runs/$(basename "${config%.*}")
previous=
for argument in "$@"; do
    [[ $previous == --run-dir ]] && run=$argument
    [[ $argument == --run-dir=* ]] && run=${argument#--run-dir=}
    previous=$argument
done

container=()
if [[ -n ${FORESCALE_CONTAINER:-} ]]; then
    container=(--container-image="$FORESCALE_CONTAINER" --container-workdir="$PWD")
    container+=(--container-mounts="${FORESCALE_MOUNTS:-$PWD:$PWD}")
    python=python3
elif [[ -x .venv/bin/python ]]; then
    python=$PWD/.venv/bin/python
else
    python=$(command -v python3) || end 2 "no python3: load a module, make setup, or set FORESCALE_CONTAINER"
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch
export PYTHONUNBUFFERED=1
unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE # each step may use its nodes' memory

again() { # CODE WHY [NODES TO KEEP AWAY FROM]: the code where requeue is off
    if [[ ${FORESCALE_REQUEUE:-yes} == no ]]; then
        end "$1" "$2; submit again, or let the next of the array go on"
    fi
    echo "train_large: $2; the job is requeued"
    trap '' TERM # which comes with the requeue
    local excluded
    excluded=$(scontrol -o show job "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\([^ ]*\) .*/\1/p')
    [[ $excluded == "(null)" ]] && excluded=
    scontrol requeue "$SLURM_JOB_ID" || exit 1
    if [[ -n ${3:-} ]]; then
        scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="${excluded:+$excluded,}$3"
    fi
    exit 0
}

failed() { # CODE [NODES TO KEEP AWAY FROM]: the third time after the same step is the last
    local step why
    step=$(tail -n 1 "$run/metrics.jsonl" 2>/dev/null | sed -n 's/^{"step": \([0-9]*\),.*/\1/p')
    step=${step:-0}
    why="failed after step $step (code $1)"
    [[ $1 == 138 ]] && why="USR1 came before it could be heeded: is --time longer than --signal's lead?"
    [[ -n ${2:-} ]] && why="$2 cannot train"
    mkdir -p "$run"
    echo "step $step: code $1, job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}" >>"$run/failures"
    if [[ $(tail -n 3 "$run/failures" | grep -c "^step $step:") == 3 ]]; then
        end 1 "failed 3 times after step $step, for the reason above; giving up"
    fi
    again 1 "$why" "${2:-}"
}

echo "train_large: job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, $(date '+%F %T'), $run" \
    "on $SLURM_JOB_NODELIST"
[[ -e $run/stop ]] && end 0 "$run/stop asks this run to stand still"

# What cannot be is refused here, once, before a node works. A step sees the GPUs that were asked for.
one=(--nodes=1 --ntasks=1 --input=none)
tasks=${SLURM_NTASKS_PER_NODE:-1}
gpus=$(srun "${one[@]}" sh -c "echo \${SLURM_GPUS_ON_NODE:-$tasks}") || failed $?
((tasks > gpus)) && end 2 "$tasks tasks and $gpus GPUs on a node: start one task for each GPU, with \
--ntasks-per-node=$gpus or --gres=gpu:$tasks"
srun "${one[@]}" --gres=none "${container[@]}" "$python" \
    -m launch plan "$config" "$@" --world "$SLURM_NTASKS" --node "$tasks"
code=$?
((code > 128 && code < 255)) && failed "$code" # a signal, such as the one before the time limit
((code)) && end 2 "the run is refused (above); nothing is requeued"

if [[ ${FORESCALE_PREFLIGHT:-yes} != no ]]; then
    report=$(srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --input=none \
        "${container[@]}" "$python" -m launch preflight "$run" --tasks "$tasks")
    code=$?
    echo "$report"
    unfit=$(sed -n 's/^unfit \([^:]*\):.*/\1/p' <<<"$report" | paste -s -d, -)
    ((code)) && failed "$code" "$unfit"
fi

rm -f "$run/saved" # of an earlier start
srun --kill-on-bad-exit=1 --wait=60 --label --input=none "${container[@]}" "$python" launch/train.py \
    "$config" "$@"
code=$?

# How a run ended is said by its markers: a node's failure leaves srun's code at 0.
[[ -e $run/done ]] && end 0 "$run is done"
[[ -e $run/stop ]] && end 0 "$run was asked to stop"
[[ -e $run/saved ]] && again 0 "$(<"$run/saved") is saved"
[[ $code == 2 ]] && end 2 "the run is refused (above); nothing is requeued"
failed "$code"
