#!/usr/bin/env bash
# A sweep as a shell loop: for each cell a training script, then the lm_eval command. The base first.
#   sweep.sh MODEL FOLDER PYTHON LIMIT CHAT CELL...
# CELL is size:seed; FOLDER/rows/<size>-<seed>.jsonl its examples. CHAT: 1 asks in the model's chat template, 0 in text.
set -euo pipefail
model=$1 folder=$2 python=$3 limit=$4
chat=()
if [ "$5" = 1 ]; then chat=(--apply_chat_template --fewshot_as_multiturn); fi
shift 5
here=$(dirname "$0")

score() { # ADAPTER-ARGUMENT NAME
    "$python" -m lm_eval run --model hf --model_args "pretrained=$model,dtype=bfloat16$1" \
        --include_path "$folder/tasks" --tasks chain_sum --num_fewshot 5 --limit "$limit" --batch_size 16 \
        "${chat[@]}" --output_path "$folder/scores/$2" --log_samples
}

score "" base
for cell in "$@"; do
    size=${cell%:*} seed=${cell#*:}
    "$python" "$here/trl_cell.py" "$model" "$folder/rows/$size-$seed.jsonl" "$seed" "$folder/adapters/$size-$seed"
    score ",peft=$folder/adapters/$size-$seed" "$size-$seed"
done
