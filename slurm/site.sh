# shellcheck shell=bash
# What your cluster wants, in one place.  Every job script reads this file on the first node; source it in your own shell
# too, before sbatch: sbatch knows variables named SBATCH_*, and they win over #SBATCH lines.
#   source slurm/site.sh && sbatch slurm/base_unet.sh

#export SBATCH_PARTITION=gpu
#export SBATCH_ACCOUNT=my_project
#export SBATCH_TIMELIMIT=12:00:00

# Words in front of every Python command on the nodes: a container, for instance.
#export TRYON_RUN_IN="apptainer exec --nv --bind /scratch tryon.sif"

# Options of srun for every step.
# shellcheck disable=SC2034 # slurm/prologue.sh reads it
SRUN_OPTIONS=()

# yes: test the hosts before each job trains (a minute); a broken one is left out when the job is requeued.
export TRYON_PREFLIGHT=${TRYON_PREFLIGHT:-no}

load_modules() { # what makes Python and CUDA available, on the first node; srun hands the environment on
  : # module load cuda/12.8
}
