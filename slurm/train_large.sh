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
#   FORESCALE_MOUNTS      what the container sees of the nodes, as `--container-mounts` takes it
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
home=${FORESCALE_HOME:-${SLURM_SUBMIT_DIR:-.}}
[[ -f $home/launch/train.py ]] ||
    end 2 "$home is not Forescale's checkout; submit from there or set FORESCALE_HOME"
cd "$home" || exit 2
[[ ${1:-} == -* ]] && end 2 "CONFIG comes first: sbatch slurm/train_large.sh CONFIG $*"

config=${1:-configs/large.yaml}
shift $(($# > 0))

# The run folder is the same for every start of a job or of a chain of jobs.
run=runs/$(basename -- "${config%.*}")
previous=
for argument in "$@"; do
    [[ $previous == --run-dir ]] && run=$argument
    [[ $argument == --run-dir=* ]] && run=${argument#--run-dir=}
    previous=$argument
done

container=()
image=${FORESCALE_CONTAINER:-}
if [[ -n $image ]]; then
    [[ $image =~ ^/|\.sqsh$ && ! -e $image ]] && end 2 "FORESCALE_CONTAINER: there is no $image"
    container=(--container-image="$image" --container-workdir="$PWD")
    container+=(--container-mounts="${FORESCALE_MOUNTS:-$PWD:$PWD}")
    python=python3
elif [[ -x .venv/bin/python ]]; then
    python=$PWD/.venv/bin/python
else
    python=$(command -v python3) || end 2 "no python3: load a module, make setup, or set FORESCALE_CONTAINER"
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch
export FORESCALE_START_SECONDS=${FORESCALE_START_SECONDS:-120} # many nodes load Python slowly
export PYTHONUNBUFFERED=1
unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE # each step may use its nodes' memory

facts=
look() { # at the job as Slurm sees it; an array's number is that of one of its jobs, too
    for _ in {1..60}; do # ten minutes for a controller that is started anew
        facts=" $(scontrol -o show job "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID ") "
        [[ $facts == *" JobState="* ]] && return
        sleep 10
    done
    end 1 "Slurm knows nothing of job $SLURM_JOB_ID"
}

fact() { # NAME
    sed -n "s/.* $1=\([^ ]*\) .*/\1/p" <<<"$facts"
}

# This script may outlive its start, when a node is lost and its processes are not.
end_if_replaced() {
    look
    if [[ $(fact JobState) != RUNNING || $(fact Restarts) != "${SLURM_RESTART_COUNT:-0}" ]]; then
        end 1 "start ${SLURM_RESTART_COUNT:-0} is over: the job is $(fact JobState), start $(fact Restarts)"
    fi
}

again() { # CODE WHY [NODES TO KEEP AWAY FROM]: the code where requeue is off
    if [[ ${FORESCALE_REQUEUE:-yes} == no ]]; then
        end "$1" "$2; the same command goes on from there, as does the next of a chain"
    fi
    end_if_replaced
    echo "train_large: $2; the job is requeued"
    trap '' TERM # which comes with the requeue
    local excluded
    excluded=$(fact ExcNodeList)
    [[ $excluded == "(null)" ]] && excluded=
    scontrol requeue "$SLURM_JOB_ID" || exit 1
    if [[ -n ${3:-} ]]; then
        scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="${excluded:+$excluded,}$3"
    fi
    exit 0
}

failed() { # WHY [NODES TO KEEP AWAY FROM]: a job's third failure after the same step is its last
    local step line
    end_if_replaced
    step=$(tail -n 1 "$run/metrics.jsonl" 2>/dev/null | sed -n 's/^{"step": \([0-9]*\),.*/\1/p')
    line="job ${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}, step ${step:-0}:"
    mkdir -p "$run"
    echo "$line start ${SLURM_RESTART_COUNT:-0}, $1" >>"$run/failures" ||
        end 1 "$1; $run/failures cannot be written, so nothing is requeued"
    if (($(tail -n 3 "$run/failures" | grep -c "^$line") == 3)); then
        end 1 "$1; failed 3 times after step ${step:-0}, for the reason above; giving up"
    fi
    again 1 "failed after step ${step:-0}: $1" "${2:-}"
}

early="USR1 came before it could be heeded: is --time longer than --signal's lead?"
step=
signalled=
# The ranks get the signal from Slurm; this shell does with --signal=B:USR1 and scancel --batch.
trap 'signalled=yes; [[ -z $step ]] || kill -USR1 "$step"' USR1

ended() { # CODE WHAT: fails where it must
    [[ -n $signalled || $1 == 138 ]] && failed "$early"
    (($1 == 0)) || failed "$2 ended with code $1"
}

echo "train_large: job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, $(date '+%F %T'), $run" \
    "on $SLURM_JOB_NODELIST"
[[ -e $run/stop ]] && end 0 "$run/stop asks this run to stand still"

# What cannot be is refused here, once, before a node works. A step sees the GPUs that were asked for.
one=(--nodes=1 --ntasks=1 --input=none)
tasks=${SLURM_NTASKS_PER_NODE:-1}
gpus=$(srun "${one[@]}" sh -c "echo \${SLURM_GPUS_ON_NODE:-$tasks}")
ended $? "srun"
((tasks > gpus)) && end 2 "$tasks tasks and $gpus GPUs on a node: start one task for each GPU, with \
--ntasks-per-node=$gpus or --gres=gpu:$tasks"

plan=$(srun "${one[@]}" --gres=none "${container[@]}" "$python" \
    -m launch plan "$config" "$@" --world "$SLURM_NTASKS" --node "$tasks")
code=$?
echo "$plan"
[[ $code == 2 || $code == 255 ]] && end 2 "the run is refused (above); nothing is requeued"
ended $code "the plan"
run=$(sed -n 's/^run folder: //p' <<<"$plan")
[[ $plan == *"nothing is left to do"* ]] && end 0 "$run is done"

if [[ ${FORESCALE_PREFLIGHT:-yes} != no ]]; then
    report=$(srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --wait=30 \
        --input=none "${container[@]}" "$python" -m launch preflight "$run" --tasks "$tasks" |
        tee -a /dev/stderr)
    code=$?
    unfit=$(sed -n 's/^unfit \([^:]*\):.*/\1/p' <<<"$report" | paste -s -d, -)
    [[ -n $unfit ]] && failed "$unfit cannot train" "$unfit"
    ended $code "the preflight"
fi

# Ranks that cannot heed the signal, because they hang or save for too long, would be lost with the
# time limit.
mind_the_limit() {
    local last left
    while look && last=$(date -d "$(fact EndTime)" +%s 2>/dev/null); do
        left=$((last - $(date +%s) - 20))
        ((left > 0)) || failed "nothing was saved before the time limit"
        sleep "$left"
    done
}

before=$(cat "$run/saved" 2>/dev/null)
rm -f "$run/saved" "$run/done" # of an earlier start
srun --kill-on-bad-exit=1 --wait=60 --label --input=none "${container[@]}" "$python" launch/train.py \
    "$config" "$@" &
step=$!
[[ ${FORESCALE_REQUEUE:-yes} == no ]] || mind_the_limit &
minder=$!
while
    wait "$step" # or until a signal
    code=$?
    kill -0 "$step" 2>/dev/null
do :; done
kill "$minder" 2>/dev/null

# How a run ended is said by its markers: srun's code is 0 after a lost node, and of ranks that end
# with different codes it is that of those which were killed.
[[ -e $run/done ]] && end 0 "$run is done"
[[ -e $run/stop ]] && end 0 "$run was asked to stop"
if [[ -e $run/saved ]]; then
    saved=$(<"$run/saved")
    [[ $saved == "$before" ]] && failed "$early"
    again 0 "$saved is saved"
fi
[[ $code == 138 ]] && failed "$early"
failed "the ranks ended with code $code"
