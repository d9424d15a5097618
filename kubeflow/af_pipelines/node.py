"""One node of a training job: torchrun, ended with the exit code of the worker that failed first.

    PET_NNODES=2 PET_NODE_RANK=0 PET_NPROC_PER_NODE=8 PET_MASTER_ADDR=… PET_MASTER_PORT=… \
        python -m af_pipelines.node tools/pretrain_af.py --config configs/demo.yaml stage=align

Plain torchrun turns every failure into exit code 1, which hides from the job controller whether a restart can help.
Workers are never restarted one by one: the launcher restarts the whole job, which then resumes from its checkpoint.
"""

import sys

from megatron_af.pipeline.torchrun import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
