"""Pretrain a ViT or Swin by masked image modeling, with keypoint weights (KAMIM) or without (SimMIM): `kamim pretrain`.

accelerate launch run_mim.py --model_type vit
torchrun --nproc_per_node 8 run_mim.py configs/pretrain/kamim_vit_base__in1k__192__100ep.yaml
python run_mim.py --model_type vit --model_size tiny --max_steps 3 --use_cpu
"""

from modeling_kamim.commands.endings import run
from modeling_kamim.commands.pretrain import main

if __name__ == "__main__":
    run(main)
