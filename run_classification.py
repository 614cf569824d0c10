"""Score a checkpoint by linear probes, nearest neighbors, fine-tuning or reconstructions: `kamim evaluate`.

accelerate launch run_classification.py --mode finetune --model_name_or_path outputs/mim
python run_classification.py --protocol cached --probe_layers all --model_name_or_path outputs/mim
python run_classification.py --mode reconstruction --model_name_or_path outputs/mim
"""

from modeling_kamim.commands.endings import run
from modeling_kamim.commands.evaluate import main

if __name__ == "__main__":
    run(main)
